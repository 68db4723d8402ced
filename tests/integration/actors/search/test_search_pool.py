"""A SearchPool under a real Ray: it follows the load as far as the quota goes; deaths and departures lose no call."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayError

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.pool import Searchers
from actors.search.quota.actor import PREFIX
from actors.search.quota.settings import QuotaSettings
from actors.search.seams import TextHit, TextQuery
from actors.search.settings import PoolSettings, ProviderSettings, SearchSettings
from cluster.errors import UserError
from cluster.runtime import NAMESPACE
from tests.unit.actors.search.search_world import FolderImages

HERE = "tests.integration.actors.search.test_search_pool"
POOL = PoolSettings(min=1, max=4, per_actor=8, every_s=0.2, up_after_s=0.5, down_after_s=1.0, turn_every_s=3.0)
LONG = 60.0  # seconds, more than anything here takes
pytestmark = pytest.mark.usefixtures("ray_cluster")


class Slow:
    """Answers with its process's id after half a second, or after as many seconds as the query begins with."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        (self.folder / f"pid-{os.getpid()}").touch()

    async def search(self, query: TextQuery) -> list[TextHit]:
        first = query.text.split()[0]
        await asyncio.sleep(float(first) if first.isdigit() else 0.5)
        return [TextHit(str(os.getpid()), "", query.text)]


class Broken:
    def __init__(self) -> None:
        raise ValueError("no index here")


@asynccontextmanager
async def searchers_of(tmp_path, pool: PoolSettings = POOL, quota: QuotaSettings | None = None, name: str = "slow"):
    provider = ProviderSettings(path=f"{HERE}:Slow", kwargs={"folder": str(tmp_path)}, name=name, quota=quota)
    searchers = Searchers(SearchSettings(text=[provider], pool=pool), FolderImages(str(tmp_path)))
    try:
        await asyncio.wait_for(searchers.ready(), LONG)
        yield searchers
    finally:
        await searchers.close()
        if quota is not None:
            ray.kill(ray.get_actor(PREFIX + name, namespace=NAMESPACE))


def pids(tmp_path) -> list[int]:
    """Of all workers that were ever started."""
    return [int(mark.name.removeprefix("pid-")) for mark in tmp_path.glob("pid-*")]


class Load:
    """Callers that ask one new question after the other until they are told to stop."""

    def __init__(self, toolbox, callers: int) -> None:
        self.toolbox, self.results, self.stopped = toolbox, [], False
        self.callers = [asyncio.create_task(self._ask(i)) for i in range(callers)]

    async def _ask(self, caller: int) -> None:
        asked = 0
        while not self.stopped:
            request = ToolRequest(Tool.TEXT_SEARCH, f"question {asked} of {caller}")
            self.results.append(await self.toolbox.call(request, deadline=time.monotonic() + LONG))
            asked += 1

    async def end(self) -> None:
        """Stop; all that was asked must have been answered."""
        self.stopped = True
        await asyncio.gather(*self.callers)
        assert [result.outcome for result in self.results] == [Outcome.OK] * len(self.results)

    @property
    def by_worker(self) -> set[int]:
        return {int(result.evidence[0].title) for result in self.results}


async def until(condition, seconds: float = LONG):
    """Wait until an awaitable of `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


def answered_by(load: Load, workers: int):
    async def reached() -> bool:
        return len(load.by_worker) >= workers

    return reached


def serving(searchers, number: int):
    async def reached() -> bool:
        standing = await searchers._pool.standing.remote()
        return (standing.serving, standing.coming, standing.leaving) == (number, 0, 0)

    return reached


async def test_a_load_step_is_followed_as_far_as_the_quota_goes_and_left_again(tmp_path):
    quota = QuotaSettings(per_second=20, burst=5, jitter=0)  # half a second at 20 a second: ten at a time
    async with searchers_of(tmp_path, quota=quota, name="slow-with-quota") as searchers:
        load, sizes = Load(searchers.toolbox, 40), []  # without the quota these would be worth five workers
        until_then = time.monotonic() + 6.0
        while time.monotonic() < until_then:
            sizes.append((await searchers._pool.standing.remote()).target)
            await asyncio.sleep(0.1)
        assert set(sizes) == {1, 2}
        assert sizes == sorted(sizes)
        await until(serving(searchers, 2))
        await until(answered_by(load, 2))
        await load.end()
        await until(serving(searchers, 1))
        totals = await searchers.toolbox.totals()
        assert totals.calls == len(load.results)  # what the one that has gone did is not forgotten


@pytest.mark.slow  # a process is started anew
@pytest.mark.parametrize("victim", ["worker", "pool"])
async def test_a_process_killed_in_the_middle_loses_no_call(tmp_path, victim):
    async with searchers_of(tmp_path, PoolSettings(min=2, max=3, per_actor=100, every_s=0.2)) as searchers:
        load = Load(searchers.toolbox, 20)
        await asyncio.sleep(1.2)
        before = set(pids(tmp_path))
        if victim == "worker":
            os.kill(next(iter(before)), signal.SIGKILL)
        else:
            [pool] = [
                one for one in psutil.Process().children(recursive=True) if "SearchPool" in "".join(one.cmdline())
            ]
            pool.kill()

        await until(answered_by(load, 3))
        await load.end()
        assert len(before) == 2


async def test_one_that_ray_has_given_up_is_replaced(tmp_path):
    async with searchers_of(tmp_path, PoolSettings(min=1, max=2, per_actor=100, every_s=0.2)) as searchers:
        load = Load(searchers.toolbox, 5)
        await asyncio.sleep(0.7)
        _, [worker] = await searchers._pool.members.remote(0, 1.0)
        ray.kill(worker)
        await until(answered_by(load, 2))
        await load.end()


async def test_one_that_leaves_finishes_what_it_has_begun_and_its_process_ends(tmp_path):
    async with searchers_of(tmp_path) as searchers:
        load = Load(searchers.toolbox, 12)
        await until(answered_by(load, 2))
        await asyncio.sleep(0.7)  # calls are spread evenly
        long = [
            asyncio.create_task(
                searchers.toolbox.call(ToolRequest(Tool.TEXT_SEARCH, f"5 {i}"), deadline=time.monotonic() + LONG)
            )
            for i in range(6)
        ]
        await load.end()

        async def leaving() -> bool:
            return (await searchers._pool.standing.remote()).leaving == 1

        await until(leaving)
        assert not any(call.done() for call in long)
        results = await asyncio.gather(*long)
        assert [result.outcome for result in results] == [Outcome.OK] * 6
        assert len({result.evidence[0].title for result in results}) == 2  # also by the one that was leaving
        assert {result.evidence[0].text for result in results} == {f"5 {i}" for i in range(6)}
        assert len(pids(tmp_path)) == 2  # nobody began anew

        async def ended() -> bool:
            return sum(psutil.pid_exists(pid) for pid in pids(tmp_path)) == 1

        await until(ended)


async def test_a_fixed_number_needs_no_pool_process(tmp_path):
    async with searchers_of(tmp_path, PoolSettings(min=1, max=1)) as searchers:
        assert searchers._pool is None
        load = Load(searchers.toolbox, 3)
        await asyncio.sleep(0.1)
        await load.end()
        assert load.by_worker == set(pids(tmp_path))


async def test_what_a_provider_raises_when_it_is_made_is_raised_by_ready(tmp_path):
    settings = SearchSettings(text=[ProviderSettings(path=f"{HERE}:Broken")], pool=POOL)
    searchers = Searchers(settings, FolderImages(str(tmp_path)))
    try:
        with pytest.raises(RayError, match="no index here"):
            await asyncio.wait_for(searchers.ready(), LONG)
    finally:
        await searchers.close()


async def test_closing_ends_all_processes(tmp_path):
    async with searchers_of(tmp_path, PoolSettings(min=2, max=3)):
        assert all(psutil.pid_exists(pid) for pid in pids(tmp_path))

    async def ended() -> bool:
        return not any(psutil.pid_exists(pid) for pid in pids(tmp_path))

    await until(ended)


def test_a_provider_that_does_not_exist_is_said_before_an_actor_starts(tmp_path):
    settings = SearchSettings(text=[ProviderSettings(path=f"{HERE}:Nobody")], pool=POOL)
    with pytest.raises(UserError, match="cannot be imported"):
        Searchers(settings, FolderImages(str(tmp_path)))
