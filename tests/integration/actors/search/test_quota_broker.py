"""The quota broker as an actor: shared by workers and drivers, and what its death changes (nothing that was spent)."""

import asyncio
import os
import signal
import time
import uuid
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from actors.search.quota.actor import PREFIX, RemoteSource
from actors.search.quota.core import Ending, Reason, Refusal, Settlement
from actors.search.quota.desk import LeaseDesk
from actors.search.quota.journal import Journal
from actors.search.quota.settings import BudgetSettings, QuotaSettings
from actors.search.seams import ErrorKind, ProviderError
from cluster.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def endpoint():
    """The name of an endpoint of the test's own; its broker is ended."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    ray.kill(ray.get_actor(PREFIX + name))


async def leases(source: RemoteSource, wanted: int) -> tuple[int, ...]:
    got = await source.request(wanted, 5.0)
    assert not isinstance(got, Refusal)
    return got


async def pid_of(endpoint: str) -> int:
    """The process of the broker, as soon as it has one."""
    broker: Any = ray.get_actor(PREFIX + endpoint)
    while True:
        try:
            return await broker.pid.remote()
        except RayError:
            await asyncio.sleep(0.05)


async def test_two_sources_of_one_endpoint_share_its_concurrency(endpoint):
    quota = QuotaSettings(concurrency=3)
    one, other = (RemoteSource(endpoint, quota, 0.0, "") for _ in range(2))
    held = [*await leases(one, 2), *await leases(other, 2)]
    assert len(held) == 3
    assert await other.request(1, 0.1) == ()
    await one.settle([Settlement(held[0], Ending.ANSWERED)])
    assert len(await leases(other, 2)) == 1


async def test_the_last_configuration_holds_for_all(endpoint):
    first = RemoteSource(endpoint, QuotaSettings(concurrency=1), 0.0, "")
    await leases(first, 1)
    RemoteSource(endpoint, QuotaSettings(concurrency=2), 0.0, "")
    assert len(await leases(first, 1)) == 1


@pytest.mark.slow  # a process is started anew
async def test_a_broker_that_is_killed_under_load_overspends_nothing_and_forgets_nothing(endpoint, tmp_path):
    budget, sent, refusals = 300, 0, list[ErrorKind]()
    quota = QuotaSettings(per_second=200, burst=5, per_day=BudgetSettings(requests=budget))
    desk = LeaseDesk(endpoint, RemoteSource(endpoint, quota, 0.0, str(tmp_path)))

    async def caller() -> None:
        nonlocal sent
        try:
            while True:
                lease = await desk.lease()
                sent += 1
                await asyncio.sleep(0.01)
                desk.settle(Settlement(lease, Ending.ANSWERED))
        except ProviderError as error:
            refusals.append(error.kind)

    async def killer() -> None:
        for _ in range(2):
            await asyncio.sleep(0.4)
            os.kill(await pid_of(endpoint), signal.SIGKILL)

    async with asyncio.timeout(60):
        await asyncio.gather(killer(), *(caller() for _ in range(20)))
    block = budget // 50
    assert refusals == [ErrorKind.BUDGET] * 20
    assert budget - 2 * 2 * block <= sent <= budget
    written = Journal(Folder(tmp_path), endpoint).read()
    assert written is not None
    assert written["day"]["claimed"]["requests"] >= sent


async def test_a_refusal_crosses_processes_with_its_reason(endpoint):
    source = RemoteSource(endpoint, QuotaSettings(), 0.0, "")
    (lease,) = await leases(source, 1)
    await source.settle([Settlement(lease, Ending.NO_CREDIT)])
    refusal = await source.request(1, 1.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.NO_CREDIT
    assert refusal.until is not None
    assert refusal.until > time.time()
