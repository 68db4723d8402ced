"""Weights written as safetensors, one copy from where they are to where they go, digested on the way.

A `Shard` is a piece of memory with a safetensors file in it: a header of fixed room, padded with spaces as the format
allows, and behind it the tensors without gaps. So a tensor can be laid down before it is known what will follow. The
memory is either a bucket's, that is sent on, or a file's (`MappedFile`), whose pages stay mapped and allocated from
one version to the next: getting them anew takes longer than the copy.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.weights.manifest import WeightEntry, digest_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bytes = NDArray[np.uint8]
HEADER_ROOM = 128 << 10  # bytes of a shard before its first tensor: about a thousand names
ALONE = 512 << 10  # bytes that are copied and digested sooner than another thread is told of them
_digester = ThreadPoolExecutor(1, thread_name_prefix="weights-digest")  # starts with its first work
_SHAPELESS = 160  # bytes of a header entry at most, without its name and shape


class MappedFile:
    """A file of up to `capacity` bytes, written through a mapping that outlives its versions."""

    def __init__(self, path: Path, capacity: int) -> None:
        """Raise OSError where there is no room for even an empty one."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self._file, capacity)
        self.memory: Bytes = np.frombuffer(mmap.mmap(self._file, capacity), dtype=np.uint8)
        os.ftruncate(self._file, 0)
        self._allocated = 0

    def reserve(self, size: int) -> None:
        """Have pages for the first `size` bytes. Raise OSError when the file system is full: a write would be a
        SIGBUS, which nobody survives."""
        if size > self._allocated:
            os.posix_fallocate(self._file, self._allocated, size - self._allocated)
            self._allocated = size

    def fits(self, capacity: int) -> bool:
        """Whether so much can be written over it: nobody has shortened it meanwhile, which would be a SIGBUS, too."""
        return len(self.memory) >= capacity and os.fstat(self._file).st_size == self._allocated

    def cut(self, size: int) -> None:
        """The file ends here."""
        os.ftruncate(self._file, size)
        self._allocated = size

    def move(self, path: Path) -> None:
        os.rename(self.path, path)
        self.path = path

    def close(self) -> None:
        """Let go of it; the file itself stays. Its pages are unmapped with the last array that looks at them."""
        del self.memory
        os.close(self._file)


class Shard:
    """Tensors laid into memory one behind the other."""

    def __init__(self, memory: Bytes, reserve: Callable[[int], None] = lambda size: None) -> None:
        self.entries: list[WeightEntry] = []
        self._memory, self._reserve = memory, reserve
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._names = _SHAPELESS  # bytes that the header will take at most
        self.size = HEADER_ROOM

    def takes(self, name: str, shape: tuple[int, ...], n_bytes: int) -> bool:
        """Whether there is room for one more tensor."""
        return self.size + n_bytes <= len(self._memory) and self._names + _header_bytes(name, shape) <= HEADER_ROOM - 8

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: Bytes | Tensor) -> WeightEntry:
        """Copy a tensor's bytes, uint8[n], of an array or a torch tensor on any device. Raise OSError without room."""
        start, end = self.size, self.size + len(data)
        self._reserve(end)
        digest = copy_digested(data, self._memory[start:end])
        entry = WeightEntry(name, dtype, shape, digest)
        offsets = [start - HEADER_ROOM, end - HEADER_ROOM]
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        self._names += _header_bytes(name, shape)
        self.entries.append(entry)
        self.size = end
        return entry

    def finish(self) -> Bytes:
        """The whole of it, header included."""
        self._reserve(self.size)
        header = json.dumps(self._header, separators=(",", ":")).encode().ljust(HEADER_ROOM - 8)
        start = (HEADER_ROOM - 8).to_bytes(8, "little") + header
        self._memory[:HEADER_ROOM] = np.frombuffer(start, dtype=np.uint8)
        return self._memory[: self.size]


def _header_bytes(name: str, shape: tuple[int, ...]) -> int:
    return len(json.dumps(name)) + 24 * len(shape) + _SHAPELESS


def copy_digested(source: Bytes | Tensor, target: Bytes) -> str:
    """Copy uint8[n] and digest it, at the same time where that is worth it: two cores then read what one of them has
    brought into their cache."""
    if not isinstance(source, np.ndarray):  # on a device
        import torch

        torch.from_numpy(target).copy_(source)
        return digest_of(target)
    if len(source) < ALONE:
        np.copyto(target, source)
        return digest_of(source)
    digest = _digester.submit(digest_of, source)
    np.copyto(target, source)
    return digest.result()


def shards(
    pieces: Iterable[tuple[str, str, tuple[int, ...], Bytes | Tensor]], limit: int, begin: Callable[[int], Shard]
) -> Iterator[Shard]:
    """Lay (name, dtype, shape, bytes) into shards of at most `limit` bytes of tensors each, or one larger tensor.

    `begin(capacity)` makes a shard. Each is yielded when it is full, and the next one is begun only afterwards. Raise
    ValueError for a name that comes twice, and for no tensor at all.
    """
    seen: set[str] = set()
    shard: Shard | None = None
    for name, dtype, shape, data in pieces:
        if name in seen:
            raise ValueError(f"{name} was sent twice")
        seen.add(name)
        if shard is not None and (
            shard.size - HEADER_ROOM + len(data) > limit or not shard.takes(name, shape, len(data))
        ):
            yield shard
            shard = None
        if shard is None:
            shard = begin(HEADER_ROOM + max(limit, len(data)))
        shard.add(name, dtype, shape, data)
    if shard is None:
        raise ValueError("there are no weights to publish")
    yield shard


def pieces_of(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, str, tuple[int, ...], Bytes | Tensor]]:
    """(name, dtype, shape, bytes) of torch tensors, which are not copied where they lie contiguous on the CPU."""
    import torch

    for name, tensor in weights:
        kind = dtype_name(name, tensor.dtype)
        flat = tensor.detach().contiguous().reshape(-1)
        raw = flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)
        yield name, kind, tuple(tensor.shape), raw if raw.is_cuda else raw.numpy()


def dtype_name(name: str, dtype: torch.dtype) -> str:
    """safetensors' name of a dtype. Raise ValueError for one that it has no name for here."""
    found = _dtype_names().get(dtype)
    if found is None:
        raise ValueError(f"{name} has dtype {dtype}, which safetensors files cannot hold here")
    return found


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
