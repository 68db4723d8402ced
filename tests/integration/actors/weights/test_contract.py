"""Ray's object store and S3 keep the contract of the transports."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError

from actors.weights.buckets import ObjectStoreTransport, StorageTransport
from actors.weights.manifest import TornPublish, WeightTicket
from cluster.storage import Folder
from tests.unit.actors.weights import contract
from tests.unit.actors.weights.contract import *  # noqa: F403 (the tests)


class Owner:
    def put(self, value):
        return [ray.put(value)]


class InObjectStore(contract.Way):
    def __init__(self, landing: Path) -> None:
        super().__init__(landing)
        self.transport = ObjectStoreTransport(contract.BUCKET)

    def spoilt(self, ticket: WeightTicket, number: int, change: Callable[[bytes], bytes]) -> WeightTicket:
        buckets = list(ticket.buckets)
        buckets[number] = ray.put(change(bytes(ray.get(buckets[number]))))
        return replace(ticket, buckets=tuple(buckets))

    def lost(self, ticket: WeightTicket, number: int) -> WeightTicket:
        """As when the learner's process has died: objects go with their owner."""
        owner: Any = ray.remote(Owner).options(num_cpus=0).remote()
        buckets = list(ticket.buckets)
        (buckets[number],) = ray.get(owner.put.remote(ray.get(buckets[number])))
        ray.kill(owner)
        wait_until(lambda: gone(buckets[number]))
        return replace(ticket, buckets=tuple(buckets))


class OnS3(contract.Way):
    def __init__(self, landing: Path, bucket: str) -> None:
        super().__init__(landing)
        self.address = f"{bucket}/weights"
        self.transport = self.storage = StorageTransport(self.address, contract.BUCKET)

    def spoilt(self, ticket: WeightTicket, number: int, change: Callable[[bytes], bytes]) -> WeightTicket:
        folder, name = Folder(ticket.folder), ticket.buckets[number]
        folder.write_bytes(name, change(folder.read_bytes(name)))
        return ticket

    def lost(self, ticket: WeightTicket, number: int) -> WeightTicket:
        Folder(ticket.folder).delete(ticket.buckets[number])
        return ticket


@pytest.fixture(params=["object_store", "s3"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[contract.Way]:
    if request.param == "s3":
        made: contract.Way = OnS3(tmp_path / "landing", request.getfixturevalue("s3_bucket"))
    else:
        request.getfixturevalue("ray_cluster")
        made = InObjectStore(tmp_path / "landing")
    yield made
    made.receiver.close()
    made.transport.close()
    if isinstance(made, OnS3):
        assert not Folder(made.address).sizes()


def test_objects_are_freed_when_the_next_version_is_out_and_nobody_holds_the_old_ticket(ray_cluster, tmp_path):
    way = InObjectStore(tmp_path / "landing")
    ticket = way.send(0, contract.model())
    old = ticket.buckets[0].hex()
    newer = way.send(1, contract.model(2.0))
    assert known(old)  # its ticket is still held: somebody may be fetching
    assert contract.same(way.got(ticket), contract.model())
    del ticket
    wait_until(lambda: not known(old))
    assert contract.same(way.got(newer), contract.model(2.0))
    last = newer.buckets[0].hex()
    del newer
    way.transport.close()
    wait_until(lambda: not known(last))
    way.receiver.close()


def gone(reference: ray.ObjectRef) -> bool:
    try:
        ray.get(reference)
    except ObjectLostError:
        return True
    return False


def known(reference: str) -> bool:
    """Whether this process knows of an object that somebody still needs."""
    from ray._private import worker as private_worker

    gc.collect()
    return reference.encode() in private_worker.global_worker.core_worker.get_all_reference_counts()


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_version_in_storage_exists_when_its_manifest_does(s3_bucket, tmp_path):
    way = OnS3(tmp_path / "landing", s3_bucket)
    way.send(3, contract.model())
    assert contract.same(way.got(way.storage.ticket(3)), contract.model())  # found by whoever knows the address
    Folder(f"{way.address}/v000003").delete("manifest.json")
    with pytest.raises(TornPublish, match="never finished, or is gone"):
        way.storage.ticket(3)
    for version in (4, 5, 6):
        way.send(version, contract.model())
    assert way.storage.versions() == [5, 6]
    way.receiver.close()
