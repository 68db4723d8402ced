"""The transports that need no server keep the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.weights.buckets import StorageTransport
from actors.weights.manifest import WeightTicket, weight_files
from actors.weights.transport import FolderTransport
from tests.unit.actors.weights import contract
from tests.unit.actors.weights.contract import *  # noqa: F403 (the tests)


class InFiles(contract.Way):
    """Buckets are files of a local folder, whoever put them there."""

    def __init__(self, transport: FolderTransport | StorageTransport, landing: Path) -> None:
        super().__init__(landing)
        self.transport = transport

    def spoilt(self, ticket: WeightTicket, number: int, change: Callable[[bytes], bytes]) -> WeightTicket:
        file = weight_files(Path(ticket.folder))[number]
        file.write_bytes(change(file.read_bytes()))
        return ticket

    def lost(self, ticket: WeightTicket, number: int) -> WeightTicket:
        weight_files(Path(ticket.folder))[number].unlink()
        return ticket


@pytest.fixture(params=["shared_memory", "storage"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InFiles]:
    transports = {
        "shared_memory": lambda: FolderTransport(tmp_path / "sent", shard_bytes=contract.BUCKET),
        "storage": lambda: StorageTransport(str(tmp_path / "sent"), contract.BUCKET),
    }
    made = InFiles(transports[request.param](), tmp_path / "landing")
    yield made
    made.receiver.close()
    made.transport.close()
    assert not list((tmp_path / "sent").glob("*"))
