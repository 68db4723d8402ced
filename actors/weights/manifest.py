"""What a published set of weights consists of, and how a receiver knows that it got all of it.

A `WeightTicket` travels from the learner to the samplers and says where the weights are; they are safetensors, in
files or in buckets of the same format. Every tensor has a digest of its bytes, so a torn write, a name that never
arrived or a wrong shape is refused before an engine loads it. Reads safetensors by their header alone: no torch here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import xxhash

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"
_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own bound

Kind = Literal["folder", "object_store", "storage", "nccl"]


class WeightsRefused(RuntimeError):
    """Published weights that must not be loaded."""


class WeightsMissed(RuntimeError):
    """Weights that went from GPU to GPU before this sampler took part. It is well, and takes part in the next ones."""


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
    """A receipt for one version. `digest` covers the version and every entry; where the weights are it does not."""

    version: int
    folder: str  # a path on this node, or the address of a folder in storage; "" where there is none
    manifest: tuple[WeightEntry, ...]
    digest: str
    kind: Kind = "folder"
    buckets: tuple[Any, ...] = ()  # of a kind that has them: file names in storage, or references to Ray's objects

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
    """Digest of a buffer. XXH3 in 128 bits finds what was torn or damaged, at the speed of reading memory; that
    nobody forges weights is for the network to see to."""
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def ticket_digest(version: int, manifest: Sequence[WeightEntry]) -> str:
    text = json.dumps([version, [asdict(entry) for entry in manifest]], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def make_ticket(
    version: int,
    folder: Path | str,
    manifest: Sequence[WeightEntry],
    kind: Kind = "folder",
    buckets: Sequence[Any] = (),
) -> WeightTicket:
    entries = tuple(sorted(manifest, key=lambda entry: entry.name))
    return WeightTicket(version, str(folder), entries, ticket_digest(version, entries), kind, tuple(buckets))


def ticket_json(ticket: WeightTicket) -> str:
    """What `ticket_from_json` reads. References to Ray's objects cannot be written down: they stay away."""
    buckets = ticket.buckets if ticket.kind == "storage" else ()
    entries = [asdict(entry) for entry in ticket.manifest]
    fields = {"version": ticket.version, "digest": ticket.digest, "kind": ticket.kind}
    return json.dumps({**fields, "buckets": buckets, "manifest": entries}, indent=1)


def ticket_from_json(text: str | bytes, folder: Path | str) -> WeightTicket:
    """The ticket of what now lies in `folder`. Raise `TornPublish` for what is no ticket."""
    try:
        raw = json.loads(text)
        entries = tuple(WeightEntry(e["name"], e["dtype"], tuple(e["shape"]), e["digest"]) for e in raw["manifest"])
        buckets = tuple(raw["buckets"])
        return WeightTicket(int(raw["version"]), str(folder), entries, raw["digest"], raw["kind"], buckets)
    except (ValueError, KeyError, TypeError) as error:
        raise TornPublish(f"{folder} holds no readable manifest: {error}") from error


def write_ticket(ticket: WeightTicket, folder: Path) -> None:
    """Leave the ticket in the folder itself, for receivers that know only the folder."""
    (folder / MANIFEST_FILE).write_text(ticket_json(ticket))


def read_ticket(folder: Path) -> WeightTicket:
    """The ticket of a published folder, naming the folder where it now lies. Raise `TornPublish` without one."""
    try:
        text = (folder / MANIFEST_FILE).read_text()
    except OSError as error:
        raise TornPublish(f"{folder} holds no readable manifest: {error}") from error
    return ticket_from_json(text, folder)


def verify(
    ticket: WeightTicket, expected: Mapping[str, tuple[int, ...]] | None = None, maps: Maps | None = None
) -> None:
    """Check every byte that a ticket of a folder promises; `expected` (name -> shape) also checks what a model needs.

    Raise `TornPublish` for what is missing or damaged, `WeightMismatch` for what is different.
    """
    check_ticket(ticket, expected)
    found = tensor_slices(Path(ticket.folder))
    check_layout(ticket, found)
    promised = {entry.name: entry for entry in ticket.manifest}
    for name, data in tensor_bytes(found, maps):
        check_digest(promised[name], digest_of(data))


def check_ticket(ticket: WeightTicket, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """What can be refused before a byte is fetched. Raise `WeightMismatch`."""
    if ticket_digest(ticket.version, ticket.manifest) != ticket.digest:
        raise WeightMismatch(f"the ticket of version {ticket.version} does not match its own manifest")
    promised = {entry.name: entry for entry in ticket.manifest}
    for name, shape in (expected or {}).items():
        if name not in promised:
            raise WeightMismatch(f"the model needs {name}, which was not published")
        if promised[name].shape != tuple(shape):
            raise WeightMismatch(f"{name} has shape {promised[name].shape}, the model needs {tuple(shape)}")


def check_layout(ticket: WeightTicket, found: Mapping[str, TensorSlice | WeightEntry]) -> None:
    """Compare names, dtypes and shapes of what arrived. Raise `TornPublish` or `WeightMismatch`."""
    promised = {entry.name: entry for entry in ticket.manifest}
    if missing := sorted(set(promised) - set(found)):
        raise TornPublish(f"version {ticket.version}: {len(missing)} weights never arrived, first {missing[0]}")
    if extra := sorted(set(found) - set(promised)):
        raise WeightMismatch(f"version {ticket.version}: {len(extra)} weights nobody sent, first {extra[0]}")
    for name, entry in promised.items():
        got = found[name]
        if (got.dtype, got.shape) != (entry.dtype, entry.shape):
            raise WeightMismatch(
                f"{name} is {got.dtype}{list(got.shape)}, promised was {entry.dtype}{list(entry.shape)}"
            )


def check_digest(entry: WeightEntry, digest: str) -> None:
    """Compare the digest of what arrived. Raise `TornPublish`."""
    if digest != entry.digest:
        raise TornPublish(f"the bytes of {entry.name} are damaged")


def check_arrived(ticket: WeightTicket, arrived: Sequence[WeightEntry]) -> None:
    """Compare all of a stream that was digested as it came. Raise `TornPublish` or `WeightMismatch`."""
    check_layout(ticket, {entry.name: entry for entry in arrived})
    digests = {entry.name: entry.digest for entry in arrived}
    for entry in ticket.manifest:
        check_digest(entry, digests[entry.name])


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
    with file.open("rb") as stream:

        def read(start: int, end: int) -> bytes:
            stream.seek(start)
            return stream.read(end - start)

        found = tensor_places(read, file.stat().st_size, file)
    return {name: TensorSlice(file, *where) for name, where in found.items()}


def bucket_tensors(bucket: memoryview, what: str) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """(name, dtype, shape, bytes) of each tensor of a bucket, not copied. Raise `TornPublish` for a damaged one."""
    places = tensor_places(lambda first, end: bytes(bucket[first:end]), len(bucket), what)
    for name, (dtype, shape, first, end) in places.items():
        yield name, dtype, shape, bucket[first:end]


def tensor_places(
    read: Callable[[int, int], bytes], size: int, what: Any
) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """name -> (dtype, shape, first byte, end) of a safetensors file of `size` bytes, wherever it lies: `read` gives its
    bytes from one to before another. Raise `TornPublish` for a damaged one."""
    start = read(0, 8)
    return _layout(start, read(8, 8 + _header_length(start, size, what)), size, what)


def _header_length(start: bytes, size: int, what: Any) -> int:
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT
    if length > min(_HEADER_LIMIT, size - 8):
        raise TornPublish(f"{what} is truncated: it has {size} bytes, not even its header")
    return length


def _layout(start: bytes, header: bytes, size: int, what: Any) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """name -> (dtype, shape, first byte, end) from a safetensors header."""
    base = len(start) + len(header)
    found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    try:
        for name, about in json.loads(header).items():
            if name != "__metadata__":
                first, end = about["data_offsets"]
                found[name] = (about["dtype"], tuple(about["shape"]), base + first, base + end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornPublish(f"{what} has a damaged header") from error
    needed = max((end for *_, end in found.values()), default=base)
    if needed > size:
        raise TornPublish(f"{what} is truncated: it has {size} bytes of {needed}")
    return found


def tensor_bytes(slices: Mapping[str, TensorSlice], maps: Maps | None = None) -> Iterator[tuple[str, memoryview]]:
    """(name, bytes) of each tensor, without copying; a view is valid only until the next one is asked for."""
    maps = maps or Maps()
    by_file: dict[Path, list[tuple[str, TensorSlice]]] = {}
    for name, where in slices.items():
        by_file.setdefault(where.file, []).append((name, where))
    for file, members in by_file.items():
        whole = maps.of(file)
        for name, where in members:
            with whole[where.start : where.end] as view:
                yield name, view


class Maps:
    """Files mapped for reading, and left so while they exist: a writer that writes one over spares its readers the
    faults of mapping every page again."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], tuple[BinaryIO, memoryview]] = {}

    def of(self, file: Path) -> memoryview:
        """All of the file as it is now. Raise OSError when it cannot be opened."""
        self._forget_deleted()
        status = file.stat()
        known = self._open.get((status.st_dev, status.st_ino))
        if known is None or len(known[1]) < status.st_size:
            stream = file.open("rb")
            known = (stream, memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
            self._open[(status.st_dev, status.st_ino)] = known
        return known[1][: status.st_size]

    def _forget_deleted(self) -> None:
        """Their memory is free when nobody has them open."""
        for key, (stream, _) in list(self._open.items()):
            if os.fstat(stream.fileno()).st_nlink == 0:
                del self._open[key]


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
