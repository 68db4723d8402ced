"""The pool's bookkeeping, with objects for workers and a clock that tests move: who serves, leaves, is lost."""

import asyncio
from dataclasses import replace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.search.ledger import Totals
from actors.search.load import EndpointLoad, LoadSample
from actors.search.pool import FIRST_PAUSE, HEARD_S, WorkerPool, bundles_ahead
from actors.search.settings import PoolSettings

SETTINGS = PoolSettings(min=1, max=4, per_actor=10, up_after_s=0, down_after_s=0, turn_every_s=0, drain_s=30)


class Method:
    """A handle's method: what it answers, or raises."""

    def __init__(self, answer) -> None:
        self.answer = answer

    async def remote(self, *args):
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Closing:
    """A worker's `close`; it must come before the end of its process."""

    def __init__(self, worker) -> None:
        self.worker = worker

    async def remote(self):
        self.worker.closed = not self.worker.ended


class Worker:
    def __init__(self, ready: Exception | None = None) -> None:
        self.ready, self.load, self.totals = Method(ready), Method(LoadSample()), Method(Totals(calls=1))
        self.close = Closing(self)
        self.ended = self.closed = False

    def busy(self, requests: int) -> None:
        self.load.answer = LoadSample((EndpointLoad("local", in_provider=requests),), calls=requests)


class World:
    """A pool, its workers in the order of their start, and the time."""

    def __init__(self, settings: PoolSettings = SETTINGS, *fates: Exception | None) -> None:
        self.now, self.workers, self.ahead, self.fates = 0.0, [], [], list(fates)
        self.pool = WorkerPool(settings, self._start, self._end, self.ahead.append, lambda: self.now)

    def _start(self) -> Worker:
        self.workers.append(Worker(self.fates.pop(0) if self.fates else None))
        return self.workers[-1]

    def _end(self, worker: Worker) -> None:
        worker.ended = True

    async def turn(self, seconds: float = 1.0) -> None:
        self.now += seconds
        await self.pool.turn()
        for _ in range(10):  # workers come
            await asyncio.sleep(0)

    @property
    def named(self) -> list[int]:
        """Places of those that callers are told of."""
        return [self.workers.index(worker) for worker in self.pool._named]


def dead() -> ActorDiedError:
    return ActorDiedError()


async def grown(settings: PoolSettings = SETTINGS, load: int = 25) -> World:
    """Three workers, the first of them busy."""
    world = World(settings)
    await world.turn()
    world.workers[0].busy(load)
    await world.turn()
    assert world.named == [0, 1, 2]
    return world


async def test_it_begins_with_the_smallest_number_and_is_ready_when_these_serve():
    world = World(replace(SETTINGS, min=2))
    ready = asyncio.create_task(world.pool.ready())
    await asyncio.sleep(0)
    assert not ready.done()
    await world.turn()
    await asyncio.wait_for(ready, 5)
    assert world.named == [0, 1]


async def test_it_grows_with_the_load_and_names_nobody_who_has_not_come():
    world = World()
    await world.turn()
    world.workers[0].busy(25)
    coming = asyncio.Event()
    start = world.pool._start

    def slow():
        worker = start()
        worker.ready.remote = coming.wait
        return worker

    world.pool._start = slow
    await world.turn()
    assert (world.pool.standing().coming, world.named) == (2, [0])
    await world.turn()
    assert len(world.workers) == 3  # those that come count
    coming.set()
    await world.turn()
    assert world.named == [0, 1, 2]


async def test_one_that_is_to_go_leaves_the_directory_first_and_is_ended_when_it_has_nothing_to_do():
    world = await grown()
    world.workers[0].busy(1)
    world.workers[1].busy(3)
    world.workers[2].busy(5)
    await world.turn()
    assert world.named == [2]  # the busiest stays
    await world.turn(HEARD_S)
    assert not any(worker.ended for worker in world.workers)
    world.workers[1].load.answer = LoadSample()
    await world.turn()
    assert [worker.ended for worker in world.workers] == [False, True, False]
    assert (await world.pool.totals()).calls == 3  # of the gone, too


async def test_one_that_has_nothing_to_do_stays_until_all_callers_have_heard_that_it_leaves():
    world = await grown()
    world.workers[0].load.answer = LoadSample()
    await world.turn()
    assert len(world.named) == 1
    await world.turn(HEARD_S - 0.1)
    assert not any(worker.ended for worker in world.workers)
    await world.turn(0.2)
    assert [worker.ended for worker in world.workers].count(True) == 2


async def test_one_that_never_finishes_is_ended_all_the_same():
    world = await grown()
    for worker in world.workers:
        worker.busy(1)
    await world.turn()
    await world.turn(SETTINGS.drain_s - 0.1)
    assert not any(worker.ended for worker in world.workers)
    await world.turn(0.2)
    assert [worker.ended for worker in world.workers].count(True) == 2


async def test_one_that_leaves_comes_back_before_a_new_one_is_started():
    world = await grown()
    world.workers[0].busy(5)
    await world.turn()
    assert world.pool.standing().leaving == 2
    world.workers[0].busy(35)
    await world.turn()
    assert world.named == [0, 1, 2, 3]
    assert len(world.workers) == 4


async def test_one_that_has_not_come_when_it_is_not_needed_any_more_goes_first():
    world = World()
    await world.turn()
    world.workers[0].busy(15)
    start, never = world.pool._start, asyncio.Event()

    def slow():
        worker = start()
        worker.ready.remote = never.wait
        return worker

    world.pool._start = slow
    await world.turn()
    world.workers[0].busy(0)
    await world.turn()
    assert world.named == [0]
    assert world.workers[1].ended
    assert world.pool.standing().coming == 0


async def test_one_that_ray_has_given_up_is_replaced_and_one_that_ray_restarts_is_not():
    world = await grown()
    world.workers[1].load.answer = ActorUnavailableError("restarting", None)
    world.workers[2].load.answer = dead()
    await world.turn()
    assert world.named == [0, 1, 3]
    assert world.pool.standing().target == 3


async def test_one_that_is_too_busy_to_tell_its_load_keeps_what_it_told(monkeypatch):
    monkeypatch.setattr("actors.search.pool.ANSWER_S", 0.01)
    world = await grown()
    world.workers[0].load.remote = asyncio.Event().wait
    await world.turn()
    assert world.named == [0, 1, 2]
    world.workers[0].load.remote = Method(ActorUnavailableError("restarting", None)).remote
    await world.turn()
    assert len(world.named) == 1  # its calls are gone, and counted where they are now


async def test_what_keeps_the_first_from_starting_is_raised_and_the_next_one_waits_longer_each_time():
    problem = dead()
    world = World(SETTINGS, problem, problem, problem)
    ready = asyncio.create_task(world.pool.ready())
    await world.turn()
    with pytest.raises(ActorDiedError):
        await asyncio.wait_for(ready, 5)
    for pause, count in [(FIRST_PAUSE, 2), (2 * FIRST_PAUSE, 3), (4 * FIRST_PAUSE, 4)]:
        await world.turn(0.9 * pause)
        assert len(world.workers) == count - 1
        await world.turn(0.2 * pause)
        assert len(world.workers) == count
    await asyncio.wait_for(world.pool.ready(), 5)
    assert world.named == [3]
    assert [worker.ended for worker in world.workers] == [True, True, True, False]


async def test_the_directory_answers_at_once_when_the_version_is_another_and_when_time_is_up():
    world = await grown()
    version, members = await world.pool.members(0, 60)
    assert members == tuple(world.workers)
    assert await world.pool.members(version, 0.001) == (version, members)
    waiting = asyncio.create_task(world.pool.members(version, 60))
    await asyncio.sleep(0)
    await world.turn()
    assert not waiting.done()  # nothing new
    world.workers[0].busy(5)
    await world.turn()
    assert (await asyncio.wait_for(waiting, 5))[1] == (world.workers[0],)


async def test_a_pool_made_anew_has_no_version_of_the_one_before_it():
    first, second = World(), World()
    await first.turn()
    await second.turn()
    assert (await first.pool.members(0, 1))[0] != (await second.pool.members(0, 1))[0]


async def test_the_cluster_is_asked_before_the_number_is_decided_and_asked_no_more_when_all_are_there():
    world = World(replace(SETTINGS, up_after_s=5))
    await world.turn()
    world.workers[0].busy(25)
    await world.turn()
    await world.turn()
    assert (len(world.workers), world.ahead) == (1, [2])
    await world.turn(5)
    assert (len(world.workers), world.ahead) == (3, [2, 0])


async def test_closing_ends_everybody_and_takes_the_hint_back():
    world = World(replace(SETTINGS, up_after_s=5))
    await world.turn()
    world.workers[0].busy(25)
    await world.turn()
    await world.pool.close()
    assert all(worker.ended for worker in world.workers)
    assert world.workers[0].closed
    assert world.ahead == [2, 0]
    assert (await world.pool.members(0, 1))[1] == ()


def test_what_is_asked_ahead_counts_what_is_held_and_is_empty_when_nothing_is_needed():
    assert bundles_ahead({"CPU": 1.3, "GPU": 1.0}, 2, 0.1) == [{"CPU": 1.0}] * 2 + [{"GPU": 1.0}] + [{"CPU": 0.1}] * 2
    assert bundles_ahead({"CPU": 1.3}, 0, 0.1) == []
    assert bundles_ahead({"CPU": 1.3}, 2, 0.0) == []
