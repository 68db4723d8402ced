"""What a published set of weights consists of, and how a receiver knows that it got all of it.

A `WeightTicket` travels from the learner to the samplers; the weights lie in a folder in Hugging Face layout. Every
tensor has a digest of its bytes, so a torn write, a name that never arrived or a wrong shape is refused before an
engine loads it. Reads safetensors files by their header alone: no torch here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"
_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own bound


class WeightsRefused(RuntimeError):
    """Published weights that must not be loaded."""


class TornPublish(WeightsRefused):
    """The folder is incomplete: a file is missing or truncated, a name never arrived, or bytes were damaged."""


class WeightMismatch(WeightsRefused):
    """The weights are whole but not the expected ones: another name, shape, dtype or version."""


@dataclass(frozen=True)
class WeightEntry:
    """One tensor: Hugging Face name, safetensors dtype (`F32`, `BF16` ...), shape, digest of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str  # algorithm:hex


@dataclass(frozen=True)
class WeightTicket:
    """A receipt for one version. `digest` covers the version and every entry."""

    version: int
    folder: str
    manifest: tuple[WeightEntry, ...]
    digest: str

    @property
    def parameters(self) -> int:
        return sum(_numel(entry.shape) for entry in self.manifest)


@dataclass(frozen=True)
class TensorSlice:
    """Where a tensor's bytes lie in its safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def digest_of(data: Any) -> str:
    """Digest of a buffer: blake3 where it is installed (vLLM brings it), else sha256."""
    try:
        from blake3 import blake3
    except ImportError:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    return f"blake3:{blake3(data).hexdigest()}"


def ticket_digest(version: int, manifest: Sequence[WeightEntry]) -> str:
    text = json.dumps([version, [asdict(entry) for entry in manifest]], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def make_ticket(version: int, folder: Path, manifest: Sequence[WeightEntry]) -> WeightTicket:
    entries = tuple(sorted(manifest, key=lambda entry: entry.name))
    return WeightTicket(version, str(folder), entries, ticket_digest(version, entries))


def write_ticket(ticket: WeightTicket, folder: Path) -> None:
    """Leave the ticket in the folder itself, for receivers that know only the folder."""
    (folder / MANIFEST_FILE).write_text(json.dumps(asdict(ticket), indent=1))


def read_ticket(folder: Path) -> WeightTicket:
    """The ticket of a published folder, naming the folder where it now lies. Raise `TornPublish` without one."""
    try:
        raw = json.loads((folder / MANIFEST_FILE).read_text())
        entries = tuple(WeightEntry(e["name"], e["dtype"], tuple(e["shape"]), e["digest"]) for e in raw["manifest"])
        return WeightTicket(int(raw["version"]), str(folder), entries, raw["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornPublish(f"{folder} holds no readable manifest: {error}") from error


def verify(ticket: WeightTicket, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Check every byte that the ticket promises; `expected` (name -> shape) also checks what a model needs.

    Raise `TornPublish` for what is missing or damaged, `WeightMismatch` for what is different.
    """
    if ticket_digest(ticket.version, ticket.manifest) != ticket.digest:
        raise WeightMismatch(f"the ticket of version {ticket.version} does not match its own manifest")
    found = tensor_slices(Path(ticket.folder))
    promised = {entry.name: entry for entry in ticket.manifest}
    if missing := sorted(set(promised) - set(found)):
        raise TornPublish(f"version {ticket.version}: {len(missing)} weights never arrived, first {missing[0]}")
    if extra := sorted(set(found) - set(promised)):
        raise WeightMismatch(f"version {ticket.version}: {len(extra)} weights nobody sent, first {extra[0]}")
    for entry in ticket.manifest:
        got = found[entry.name]
        if (got.dtype, got.shape) != (entry.dtype, entry.shape):
            raise WeightMismatch(
                f"{entry.name} is {got.dtype}{list(got.shape)}, promised was {entry.dtype}{list(entry.shape)}"
            )
    for name, data in tensor_bytes(found):
        _check_digest(promised[name], data)
    if expected is not None:
        _check_expected(promised, expected)


def _check_digest(entry: WeightEntry, data: memoryview) -> None:
    algorithm = entry.digest.partition(":")[0]
    actual = f"sha256:{hashlib.sha256(data).hexdigest()}" if algorithm == "sha256" else digest_of(data)
    if actual.partition(":")[0] != algorithm:
        raise WeightsRefused(f"the weights were digested with {algorithm}, which is not installed here")
    if actual != entry.digest:
        raise TornPublish(f"the bytes of {entry.name} are damaged")


def _check_expected(promised: Mapping[str, WeightEntry], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in promised:
            raise WeightMismatch(f"the model needs {name}, which was not published")
        if promised[name].shape != tuple(shape):
            raise WeightMismatch(f"{name} has shape {promised[name].shape}, the model needs {tuple(shape)}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in Hugging Face layout. Raise `TornPublish` where one is missing."""
    index = folder / INDEX_FILE
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except FileNotFoundError:
        names = [SINGLE_FILE]
    except (ValueError, KeyError) as error:
        raise TornPublish(f"{index} is damaged: {error}") from error
    for name in names:
        if not (folder / name).is_file():
            raise TornPublish(f"{folder} has no {name}")
    return [folder / name for name in names]


def tensor_slices(folder: Path) -> dict[str, TensorSlice]:
    """Every tensor of a folder by name. Raise `TornPublish` for a missing or truncated file."""
    return {name: where for file in weight_files(folder) for name, where in _slices(file).items()}


def _slices(file: Path) -> dict[str, TensorSlice]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else _HEADER_LIMIT
        if length > min(_HEADER_LIMIT, size - 8):
            raise TornPublish(f"{file} is truncated: it has {size} bytes, not even its header")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise TornPublish(f"{file} has a damaged header") from error
    base = 8 + length
    header.pop("__metadata__", None)
    slices = {
        name: TensorSlice(file, about["dtype"], tuple(about["shape"]), *(base + at for at in about["data_offsets"]))
        for name, about in header.items()
    }
    needed = max((where.end for where in slices.values()), default=base)
    if needed > size:
        raise TornPublish(f"{file} is truncated: it has {size} bytes of {needed}")
    return slices


def tensor_bytes(slices: Mapping[str, TensorSlice]) -> Iterator[tuple[str, memoryview]]:
    """(name, bytes) of each tensor, without copying; a view is valid only until the next one is asked for."""
    by_file: dict[Path, list[tuple[str, TensorSlice]]] = {}
    for name, where in slices.items():
        by_file.setdefault(where.file, []).append((name, where))
    for file, members in by_file.items():
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
        ):
            for name, where in members:
                with whole[where.start : where.end] as view:
                    yield name, view


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
