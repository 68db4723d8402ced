"""The policy on disk: checking a model folder before anything starts, loading it, saving it back.

A model folder is Hugging Face format (config, safetensors, tokenizer, image processor), local or `s3://`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actors.model.bounds import PROCESSOR_FILES, bounded
from actors.model.settings import split_address
from cluster.errors import UserError
from cluster.once import made_once
from cluster.storage import Folder

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

    Policy = Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration

ARCHITECTURES = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_TOKENIZER = ("tokenizer.json", "vocab.json")  # any of them
_HEADER_LENGTH = 8  # bytes of a safetensors file that say how long its JSON header is


def check_model_folder(path: str | os.PathLike[str]) -> None:
    """Raise `UserError` with one sentence unless `path` is a complete local folder of one of `ARCHITECTURES`.

    Reads headers only: a truncated file is found by the length that its header promises.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"There is no model folder at {folder}.")
    config = _json(folder / "config.json")
    found = config.get("architectures")
    found = found if isinstance(found, list) and found else ["an unnamed architecture"]
    held = [str(name) for name in found]
    if not set(ARCHITECTURES).intersection(held):
        raise UserError(f"{folder} holds {', '.join(held)}; this project runs {' and '.join(ARCHITECTURES)}.")
    for names, what in ((_TOKENIZER, "tokenizer"), (PROCESSOR_FILES, "image processor")):
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{folder} has no {what}: one of {', '.join(names)} must be there.")
    for name in weight_files(folder):
        _check_safetensors(folder / name)


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a model folder; raise `UserError` when there are none."""
    if (folder / _INDEX).is_file():
        named = _json(folder / _INDEX).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise UserError(f"{folder / _INDEX} lists no weights.")
        return sorted(set(named.values()))
    if not (folder / _SINGLE).is_file():
        raise UserError(f"{folder} has no weights: neither {_SINGLE} nor {_INDEX} is there.")
    return [_SINGLE]


def local_model(path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Path:
    """The checked local folder of a model; one on `s3://` is downloaded once to `cache` (default: the system's).

    Its pictures have the bounds that the address carries (actors/model/settings.py). A download is complete or not
    there: it grows beside its place and is renamed into it.
    """
    plain, pictures = split_address(path)
    source = Folder(plain)
    root = Path(cache) if cache else Path(tempfile.gettempdir()) / f"mmsearch-models-{os.getuid()}"
    if source.is_local:
        check_model_folder(source.local_path)
        return bounded(source.local_path, pictures, root)
    return bounded(_downloaded(source, root), pictures, root)


def _downloaded(source: Folder, root: Path) -> Path:
    def download(part: Path) -> None:
        source.download(part)
        check_model_folder(part)

    target = made_once(root / f"{source.name}-{_fingerprint(source)}", download)
    check_model_folder(target)
    return target


def load_policy(path: str | os.PathLike[str], dtype: str = "float32") -> Policy:
    """The model with its weights in `dtype` (float32 | bfloat16 | float16), on the CPU, with SDPA attention.

    Weights that are stored in `dtype` are the mapped file itself: processes of one node have them in memory once.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; accepted: float32, bfloat16, float16")
    folder = local_model(path)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return cast("Policy", model)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the parameters this precision, and leave buffers in theirs, unlike `model.to(dtype)`.

    Rotary frequencies are buffers: in bf16 the angle of a token at position 1000 would be off by up to a radian (with
    a base of 10^6 and heads of 128), and the learner's model would be another one than the sampler's.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def parameter_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its module's name (as `named_parameters` gives them), without any memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def save_policy(model: Any, path: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Write `model` as a complete model folder: its weights and config, everything else copied from `source`.

    `path` may be `s3://`.
    """
    with exporting(local_model(source), Folder(path)) as written:
        model.save_pretrained(written)


@contextmanager
def exporting(source: Path, target: Folder, *, copies: bool = True) -> Iterator[Path]:
    """A local folder to write weights to. When it is left they are at `target`, with all that `source` has beside its
    own. Of ranks that write together one `copies`; the others' folders are nothing but a place to write."""
    with tempfile.TemporaryDirectory(prefix="mmsearch-export-") as scratch:
        written = Path(scratch)
        if copies:
            copy_without_weights(source, written)
        yield written
        if copies:
            upload_model(written, target)


def upload_model(folder: Path, target: Folder) -> None:
    """Copy the files of a local model folder; the config, which makes a folder a model, comes last."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):
        target.upload(file, file.name)


def copy_without_weights(source: Path, target: Path) -> None:
    """Copy tokenizer, processor and configuration of a model folder."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        weights = file.suffix in (".safetensors", ".bin", ".pt") or file.name == _INDEX
        if file.is_file() and not weights:
            shutil.copyfile(file, target / file.name)


def _fingerprint(source: Folder) -> str:
    """Changes when a remote model does: address, names, and the small files' content."""
    names = source.files()
    if "config.json" not in names:
        raise UserError(f"There is no model folder at {source}.")
    return hashlib.sha256(f"{source.address}\0{source.fingerprint()}".encode()).hexdigest()[:16]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no model folder: it has no {path.name}.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object.")
    return value


def _check_safetensors(path: Path) -> None:
    """Layout: 8 bytes little-endian length, JSON header with `data_offsets`, then exactly the data it promises."""
    if not path.is_file():
        raise UserError(f"{path.parent} is incomplete: {path.name} is missing.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(_HEADER_LENGTH)
        length = struct.unpack("<Q", start)[0] if len(start) == _HEADER_LENGTH else size
        if _HEADER_LENGTH + length > size:
            raise UserError(f"{path} is truncated: it ends inside its header.")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is not a safetensors file.") from error
    expected = _HEADER_LENGTH + length + max(ends, default=0)
    if size != expected:
        raise UserError(f"{path} is truncated or damaged: {size} bytes, but its header promises {expected}.")
