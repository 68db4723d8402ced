"""Weights through a folder: shared memory on one node, or any file system that all of them mount.

`send` streams tensors into safetensors files of a hidden folder, bucket by bucket, and renames it to `v000007` when
everything is there: a reader sees a version whole or not at all. The folder is in Hugging Face layout with the
model's config, so vLLM's `reload_weights(weights_path=...)` takes it as it is. The last two versions are kept: one may
still be loading while the next is written.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actors.weights.manifest import (
    INDEX_FILE,
    SINGLE_FILE,
    WeightEntry,
    WeightTicket,
    digest_of,
    make_ticket,
    verify,
    write_ticket,
)

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 2 << 30  # of one safetensors file: what is held in memory twice at most
CONFIG_FILES = ("config.json", "generation_config.json")


class WeightTransport(Protocol):
    """Both ends of a way for weights to travel."""

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> WeightTicket:
        """Consume (Hugging Face name, tensor) pairs and return the receipt."""
        ...

    def receive(self, ticket: WeightTicket) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a ticket. Raise `TornPublish` or `WeightMismatch`."""
        ...

    def close(self) -> None:
        """Free what the transport holds."""
        ...


def default_root(run: str) -> Path:
    """Shared memory where there is any, else the temporary folder."""
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"mmsearch-{run}-{os.getuid()}"


class FolderTransport:
    """Versions under `root/v000007`; `config_from` is a model folder whose config files go with them."""

    def __init__(
        self, root: Path, config_from: Path | None = None, *, keep: int = 2, shard_bytes: int = SHARD_BYTES
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: the version just sent must stay")
        self.root = Path(root)
        self._config_from = None if config_from is None else Path(config_from)
        self._keep = keep
        self._shard_bytes = shard_bytes

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> WeightTicket:
        """Write, rename, forget the oldest. A version sent again (after a resume) replaces the earlier one."""
        self.root.mkdir(parents=True, exist_ok=True)
        target = self.folder(version)
        unfinished = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{target.name}-"))
        try:
            manifest = write_weights(weights, unfinished, self._shard_bytes)
            self._copy_config(unfinished)
            ticket = make_ticket(version, target, manifest)
            write_ticket(ticket, unfinished)
            if target.exists():
                replaced = unfinished.with_name(unfinished.name + "-old")
                target.rename(replaced)
                unfinished.rename(target)
                shutil.rmtree(replaced)
            else:
                unfinished.rename(target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self._forget(version)
        return ticket

    def receive(self, ticket: WeightTicket) -> Iterator[tuple[str, Tensor]]:
        """The tensors, after every byte was checked."""
        from safetensors import safe_open

        from actors.weights.manifest import weight_files

        verify(ticket)
        for file in weight_files(Path(ticket.folder)):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    yield name, opened.get_tensor(name)

    def folder(self, version: int) -> Path:
        return self.root / f"v{version:06d}"

    def versions(self) -> list[int]:
        """Versions that can be received, ascending."""
        return sorted(int(path.name[1:]) for path in self.root.glob("v[0-9]*"))

    def close(self) -> None:
        """Delete every version, and the root when nothing else is in it."""
        for version in self.versions():
            shutil.rmtree(self.folder(version), ignore_errors=True)
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()

    def _copy_config(self, folder: Path) -> None:
        for name in CONFIG_FILES:
            if self._config_from is not None and (self._config_from / name).is_file():
                shutil.copyfile(self._config_from / name, folder / name)

    def _forget(self, newest: int) -> None:
        """All but the last `keep` up to `newest`. Later ones are those of a writer that was killed before a resume."""
        versions = self.versions()
        kept = [version for version in versions if version <= newest][-self._keep :]
        for version in versions:
            if version not in kept:
                shutil.rmtree(self.folder(version), ignore_errors=True)


def write_weights(
    weights: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> list[WeightEntry]:
    """Stream tensors into safetensors files of at most `shard_bytes` each (plus one tensor), with HF's index."""
    manifest: list[WeightEntry] = []
    weight_map: dict[str, str] = {}
    pending: list[tuple[WeightEntry, bytes]] = []
    seen: set[str] = set()
    size = shards = 0

    def flush(name: str) -> None:
        write_safetensors(folder / name, pending)
        weight_map.update({entry.name: name for entry, _ in pending})
        pending.clear()

    for name, tensor in weights:
        entry, data = _serialise(name, tensor)
        if name in seen:
            raise ValueError(f"{name} was sent twice")
        seen.add(name)
        if pending and size + len(data) > shard_bytes:
            shards += 1
            flush(f"model-{shards:05d}.safetensors")
            size = 0
        manifest.append(entry)
        pending.append((entry, data))
        size += len(data)
    if not manifest:
        raise ValueError("there are no weights to publish")
    flush(f"model-{shards + 1:05d}.safetensors" if shards else SINGLE_FILE)
    if shards:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index))
    return manifest


def _serialise(name: str, tensor: Tensor) -> tuple[WeightEntry, bytes]:
    import torch

    kind = _dtype_names().get(tensor.dtype)
    if kind is None:
        raise ValueError(f"{name} has dtype {tensor.dtype}, which safetensors files cannot hold here")
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return WeightEntry(name, kind, tuple(tensor.shape), digest_of(data)), data


def _dtype_names() -> dict[Any, str]:
    import torch

    return {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.float64: "F64",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.uint8: "U8",
        torch.float8_e4m3fn: "F8_E4M3",
    }


def write_safetensors(file: Path, tensors: Sequence[tuple[WeightEntry, bytes]]) -> None:
    """The safetensors format itself: header length, JSON header, bytes. Written here so that digests and files are
    made of the same bytes, copied once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry, data in tensors:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for _, data in tensors:
            stream.write(data)


__all__ = ["FolderTransport", "WeightTransport", "default_root", "write_weights"]
