"""Weights in buckets: the same safetensors shards as files, put into Ray's object store or into a storage.

A sampler lays what it fetches into a local folder (`receiver.py`), because vLLM's workers read files; digests are made
while they are copied there and compared before an engine sees them. A version whose ticket does not come, or whose
manifest is not written, does not exist: it is written last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from actors.weights.landing import Landing
from actors.weights.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    TornPublish,
    WeightEntry,
    WeightMismatch,
    WeightTicket,
    bucket_tensors,
    check_arrived,
    check_ticket,
    make_ticket,
    ticket_from_json,
    ticket_json,
)
from actors.weights.shards import Shard, pieces_of, shards
from actors.weights.transport import FolderTransport, Pieces, index_json
from cluster.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class ObjectStoreTransport:
    """The newest version as objects of Ray. They belong to this process, and live until the next version is out.

    A sampler that joins late fetches the newest version, so objects are not freed before; whoever is still fetching
    holds the references of its ticket, so nothing is taken away under it.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes
        self._newest: WeightTicket | None = None

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> WeightTicket:
        """Put bucket after bucket. Raise what Ray raises when its store is full."""
        import ray

        put: list[Any] = []
        memory = _Memory()
        manifest: list[WeightEntry] = []
        for shard in shards(pieces_of(weights), self._bucket_bytes, memory.begin):
            put.append(ray.put(shard.finish()))
            manifest += shard.entries
        self._newest = make_ticket(version, "", manifest, "object_store", put)
        return self._newest

    @contextmanager
    def opened(self, version: int) -> Iterator[Path]:
        """Only of the newest version."""
        if self._newest is None or self._newest.version != version:
            raise TornPublish(f"version {version} is no longer in the object store")
        with _landed_for_a_while(self._newest) as folder:
            yield folder

    def close(self) -> None:
        """Give up the references: the store frees the objects when no ticket holds them."""
        self._newest = None


class StorageTransport:
    """Versions under `address/v000007` of a directory or s3://; the last `keep` stay."""

    def __init__(self, address: str, bucket_bytes: int, *, keep: int = 2) -> None:
        self._root = Folder(address)
        self._bucket_bytes, self._keep = bucket_bytes, keep

    def send(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> WeightTicket:
        """Write bucket after bucket, one while the next is filled, and the manifest last.

        Raise what the storage raises (OSError, UserError).
        """
        folder = self._root / f"v{version:06d}"
        folder.delete(MANIFEST_FILE)  # of a version sent again, after a resume
        folder.delete()
        manifest: list[WeightEntry] = []
        weight_map: dict[str, str] = {}
        files: list[str] = []
        memory = _Memory()
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for shard in shards(pieces_of(weights), self._bucket_bytes, memory.begin):
                files.append(f"model-{len(files) + 1:05d}.safetensors")
                manifest += shard.entries
                weight_map |= {entry.name: files[-1] for entry in shard.entries}
                if writing is not None:
                    writing.result()
                writing = writer.submit(folder.write_bytes, files[-1], shard.finish().tobytes())
            if writing is not None:
                writing.result()
        folder.write_text(INDEX_FILE, index_json(weight_map))
        ticket = make_ticket(version, folder.address, manifest, "storage", files)
        folder.write_text(MANIFEST_FILE, ticket_json(ticket))
        self._forget(version)
        return ticket

    def ticket(self, version: int) -> WeightTicket:
        """Of a version that is there. Raise `TornPublish` for one that is not, or not whole."""
        folder = self._root / f"v{version:06d}"
        try:
            return ticket_from_json(folder.read_bytes(MANIFEST_FILE), folder.address)
        except FileNotFoundError as error:
            raise TornPublish(f"{folder} holds no manifest: it was never finished, or is gone") from error

    @contextmanager
    def opened(self, version: int) -> Iterator[Path]:
        with _landed_for_a_while(self.ticket(version)) as folder:
            yield folder

    def versions(self) -> list[int]:
        """Versions of which there is anything, ascending."""
        return sorted(int(name[1:]) for name in self._root.list() if name[:1] == "v" and name[1:].isdigit())

    def close(self) -> None:
        """Delete every version."""
        self._delete(self.versions())

    def _forget(self, newest: int) -> None:
        versions = self.versions()
        kept = [version for version in versions if version <= newest][-self._keep :]
        self._delete([version for version in versions if version not in kept])

    def _delete(self, versions: Sequence[int]) -> None:
        for version in versions:
            folder = self._root / f"v{version:06d}"
            folder.delete(MANIFEST_FILE)  # first, so that what is left for a moment is no version
            folder.delete()


class _Memory:
    """Buckets in the same memory, one after the other."""

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def begin(self, capacity: int) -> Shard:
        if len(self._memory) < capacity:
            self._memory = np.empty(capacity, dtype=np.uint8)
        return Shard(self._memory)


def landed(ticket: WeightTicket, transport: FolderTransport) -> WeightTicket:
    """Fetch the buckets of a ticket into a local folder; returns that folder's ticket.

    Raise `TornPublish` or `WeightMismatch` for what is not whole or not what the ticket says, and what Ray or the
    storage raises when they fail; nothing then stays in the folder.
    """
    check_ticket(ticket)
    if not ticket.buckets:
        raise TornPublish(f"version {ticket.version} has no buckets: nothing ever arrived")
    arrived = transport.send_pieces(ticket.version, _pieces(ticket))
    try:
        check_arrived(ticket, arrived.manifest)
    except BaseException:
        transport.discard(ticket.version)
        raise
    return arrived


def _pieces(ticket: WeightTicket) -> Pieces:
    missing = {entry.name for entry in ticket.manifest}
    for bucket, data in zip(ticket.buckets, _ahead(_fetcher(ticket), ticket.buckets), strict=True):
        what = bucket if ticket.kind == "storage" else f"a bucket of version {ticket.version}"
        for name, dtype, shape, view in bucket_tensors(memoryview(data), what):
            if name not in missing:
                raise WeightMismatch(f"version {ticket.version}: {name} came twice, or nobody sent it")
            missing.remove(name)
            yield name, dtype, shape, np.frombuffer(view, dtype=np.uint8)


def _fetcher(ticket: WeightTicket) -> Callable[[Any], Any]:
    if ticket.kind == "storage":
        folder = Folder(ticket.folder)

        def read(name: str) -> bytes:
            try:
                return folder.read_bytes(name)
            except FileNotFoundError as error:
                raise TornPublish(f"{folder} has no {name}") from error

        return read
    import ray
    from ray.exceptions import ObjectLostError

    def get(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ObjectLostError as error:
            raise TornPublish(f"version {ticket.version} is no longer in the object store: {error}") from error

    return get


def _ahead(fetch: Callable[[Any], T], keys: Sequence[Any]) -> Iterator[T]:
    """The answers in order, each next one fetched while the last is used."""
    with ThreadPoolExecutor(1) as fetcher:
        coming = fetcher.submit(fetch, keys[0]) if keys else None
        for number in range(len(keys)):
            assert coming is not None
            answer = coming.result()
            coming = fetcher.submit(fetch, keys[number + 1]) if number + 1 < len(keys) else None
            yield answer


@contextmanager
def _landed_for_a_while(ticket: WeightTicket) -> Iterator[Path]:
    with closing(Landing()) as landing:
        yield Path(landed(ticket, landing.transport).folder)
