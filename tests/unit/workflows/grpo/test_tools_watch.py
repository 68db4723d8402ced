"""What is told of search workers while some of them are silent, on a clock that jumps."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.search.load import EndpointLoad, LoadSample
from tests.unit.workflows.grpo.bad_world import play
from workflows.grpo.ray_ports import RayTools
from workflows.grpo.tools_watch import SILENT, follow


class Worker:
    """Answers with what it has served, ten more each time; silent where it is told to be."""

    def __init__(self):
        self.served, self.silent = 0, False
        self.load = SimpleNamespace(remote=self._load)

    async def _load(self):
        if self.silent:
            await asyncio.Event().wait()
        self.served += 10
        return LoadSample((EndpointLoad("paid", in_provider=1, waiting=2, served=self.served),), calls=3)


class Pool:
    """As `Searchers`, of workers that come and go."""

    def __init__(self, *workers):
        self.workers = workers

    async def members(self):
        return self.workers


def sums(sample):
    (endpoint,) = sample.endpoints
    return endpoint.waiting, endpoint.served


def told(seen, tools, seconds):
    """What `follow` tells within so many seconds."""

    async def main():
        following = asyncio.create_task(follow(tools, seen.append))
        await asyncio.sleep(seconds)
        following.cancel()

    play(main)


def test_one_worker_that_hangs_hides_no_other():
    pool, seen = Pool(Worker(), Worker(), Worker()), []
    pool.workers[1].silent = True
    told(seen, RayTools(pool), 30)
    assert len(seen) > 10
    assert sums(seen[0]) == (4, 20)
    assert {sums(sample)[0] for sample in seen} == {4}


def test_what_a_silent_worker_has_served_stands_until_it_leaves():
    pool = Pool(Worker(), Worker(), Worker())
    tools = RayTools(pool)

    async def main():
        found = [sums(await tools.load())]
        pool.workers[1].silent = True
        found += [sums(await tools.load()) for _ in range(2)]
        pool.workers[1].silent = False
        found.append(sums(await tools.load()))
        pool.workers = pool.workers[::2]
        return [*found, sums(await tools.load())]

    found, _ = play(main)
    assert found == [(6, 30), (4, 50), (4, 70), (6, 100), (4, 100)]


@pytest.mark.parametrize("seconds", [10, 100])
def test_when_nothing_has_been_told_for_long_nothing_is_known(seconds):
    class Mute:
        async def load(self):
            await asyncio.Event().wait()

    seen = []
    told(seen, Mute(), seconds)
    assert seen == ([LoadSample()] if seconds > SILENT * 6 else [])
