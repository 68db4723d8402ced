import asyncio
from dataclasses import replace

import pytest

from actors.agent.seams import ImageRefused
from actors.agent.trajectory import Evidence
from actors.search.seams import ErrorKind, ProviderError
from actors.search.store.cache_actor import AnswerCache, CacheUnreachable
from actors.search.store.records import Answer, Codec, Found, Kind
from actors.search.store.settings import CacheSettings
from actors.search.store.shared_cache import SHUN_S, SharedCache
from tests.unit.actors.search.search_world import FolderImages, scene


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    """The cache as several workers of one process see it, on one clock, with what they compute counted."""

    def __init__(self, folder, **changes) -> None:
        self.time = Time()
        self.settings = CacheSettings(folder=str(folder), **changes)
        self.door = AnswerCache(self.settings, clock=self.time, wall=self.time)
        self.computed = 0
        self.caches: list[SharedCache] = []

    def worker(self, door=None, codec=None) -> SharedCache:
        cache = SharedCache(
            self.settings, codec or Codec(), door or self.door, clock=self.time, wall=self.time, sleep=self.never
        )
        self.caches.append(cache)
        return cache

    async def never(self, seconds):
        await asyncio.Event().wait()

    def compute(self, value="a", until=None):
        async def run():
            self.computed += 1
            if until is not None:
                await until.wait()
            if isinstance(value, BaseException):
                raise value
            return value

        return run

    async def settled(self):
        """What was to be told to the actor has been told."""
        for cache in self.caches:
            if cache._news:
                await asyncio.wait(cache._news)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_one_worker_finds_what_another_one_computed(world):
    assert await world.worker().get("k", world.compute()) == ("a", False)
    await world.settled()
    assert await world.worker().get("k", world.compute()) == ("a", True)
    assert world.computed == 1
    stats = await world.door.stats()
    assert (stats.hits, stats.misses, stats.kept, stats.answers) == (1, 1, 1, 1)


async def test_repeated_lookups_of_one_worker_do_not_reach_the_actor(world):
    cache = world.worker()
    await cache.get("k", world.compute())
    for _ in range(10):
        assert await cache.get("k", world.compute()) == ("a", True)
    stats = await world.door.stats()
    assert stats.hits + stats.misses == 1


async def test_a_hundred_siblings_on_three_workers_make_one_computation(world):
    release = asyncio.Event()
    workers = [world.worker() for _ in range(3)]
    callers = [asyncio.create_task(workers[i % 3].get("k", world.compute("a", release))) for i in range(100)]
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()
    answers = await asyncio.gather(*callers)
    assert world.computed == 1
    assert [value for value, _ in answers] == ["a"] * 100
    assert sum(not shared for _, shared in answers) == 1
    assert (await world.door.stats()).waited == 2


@pytest.mark.parametrize("error", [ProviderError(ErrorKind.TRANSIENT, "503"), ImageRefused("torn")])
async def test_an_error_is_told_to_the_siblings_who_wait_and_to_nobody_later(world, error):
    release = asyncio.Event()
    one, two = world.worker(), world.worker()
    callers = [asyncio.create_task(cache.get("k", world.compute(error, release))) for cache in (one, two)]
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [error, error]
    assert world.computed == 1
    assert await two.get("k", world.compute()) == ("a", False)


async def test_an_error_that_is_ones_own_leaves_the_claim_to_the_next(world):
    release = asyncio.Event()
    one, two = world.worker(), world.worker()
    first = asyncio.create_task(one.get("k", world.compute(RuntimeError("a bug"), release)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(two.get("k", world.compute()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    release.set()
    with pytest.raises(RuntimeError, match="a bug"):
        await first
    assert await second == ("a", False)


async def test_a_worker_that_closes_gives_its_claims_back(world):
    one, two = world.worker(), world.worker()
    first = asyncio.create_task(one.get("k", world.compute("a", asyncio.Event())))
    for _ in range(5):
        await asyncio.sleep(0)
    second = asyncio.create_task(two.get("k", world.compute("b")))
    await one.close()
    assert await second == ("b", False)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_slow_owner_keeps_its_claim_by_renewing_it(world):
    beats = asyncio.Queue()

    async def sleep(seconds):
        beats.put_nowait(seconds)
        await asyncio.Event().wait() if beats.qsize() > 5 else await asyncio.sleep(0)
        world.time.now += seconds

    release = asyncio.Event()
    slow = SharedCache(world.settings, Codec(), world.door, clock=world.time, wall=world.time, sleep=sleep)
    first = asyncio.create_task(slow.get("k", world.compute("a", release)))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert beats.qsize() > 5
    assert world.time.now > world.settings.claim_s
    second = asyncio.create_task(world.worker().get("k", world.compute("b")))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    release.set()
    assert await first == ("a", False)
    assert await second == ("a", True)


async def test_nothing_found_is_forgotten_sooner_in_memory_and_on_disk(world):
    settings = world.settings
    cache = world.worker()
    await cache.get("none", world.compute(Found((), "p")))
    await cache.get("some", world.compute(Found((Evidence(1, "t", "x"),), "p")))
    await world.settled()
    world.time.now = settings.negative_ttl_s - 1
    assert (await cache.get("none", world.compute("new")))[1]
    assert (await world.worker().get("none", world.compute("new")))[1]
    world.time.now = settings.negative_ttl_s
    assert await cache.get("none", world.compute("new")) == ("new", False)
    assert (await cache.get("some", world.compute("new")))[1]
    world.time.now = settings.ttl_s
    assert await cache.get("some", world.compute("new")) == ("new", False)


async def test_an_answer_found_on_disk_is_not_kept_in_memory_beyond_its_time(world):
    await world.worker().get("k", world.compute())
    await world.settled()
    late = world.worker()
    world.time.now = world.settings.ttl_s - 5
    assert (await late.get("k", world.compute("new")))[1]
    world.time.now = world.settings.ttl_s
    assert await late.get("k", world.compute("new")) == ("new", False)


async def test_thumbnails_reach_the_other_workers_store(world, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, there = FolderImages(str(tmp_path / "here")), FolderImages(str(tmp_path / "there"))
    ref = here.put(scene("red"))
    value = Found((Evidence(1, "t", "x", thumbnail=ref),), "p")
    await world.worker(codec=Codec(here)).get("k", world.compute(value))
    await world.settled()
    assert await world.worker(codec=Codec(there)).get("k", world.compute()) == (value, True)
    assert there.get(ref) == scene("red")


class Door:
    """Another door with some of its methods replaced."""

    def __init__(self, door, **methods) -> None:
        self._door, self._methods = door, methods

    def __getattr__(self, name):
        return self._methods.get(name) or getattr(self._door, name)


async def test_a_dead_cache_fails_no_search_and_is_left_alone_for_a_moment(world, caplog):
    asked = 0

    async def dead(*arguments):
        nonlocal asked
        asked += 1
        raise CacheUnreachable("dead")

    door = Door(world.door, lookup=dead, keep=dead, fail=dead, renew=dead)
    cache = world.worker(door)
    for i in range(5):
        assert await cache.get(f"k{i}", world.compute()) == ("a", False)
    await world.settled()
    assert asked == 1
    assert await cache.get("k0", world.compute()) == ("a", True)
    world.time.now = SHUN_S
    await cache.get("k9", world.compute())
    await world.settled()
    assert asked == 2
    assert len(caplog.records) == 1


async def test_a_cache_that_dies_before_the_answer_is_kept_costs_nobody_the_answer(world):
    async def dead(*arguments):
        raise CacheUnreachable("dead")

    cache = world.worker(Door(world.door, keep=dead))
    assert await cache.get("k", world.compute()) == ("a", False)
    await world.settled()
    assert await cache.get("k", world.compute()) == ("a", True)


async def test_a_stored_answer_that_cannot_be_read_is_asked_for_anew_and_replaced(world):
    await world.door.keep("k", Answer(Kind.FOUND, b"{}"), 100.0)
    assert await world.worker().get("k", world.compute()) == ("a", False)
    await world.settled()
    assert await world.worker().get("k", world.compute()) == ("a", True)


async def test_a_value_that_cannot_be_stored_is_given_and_the_claim_passed_on(world, caplog):
    odd = (object(),)
    one = world.worker()
    assert await one.get("k", world.compute(odd)) == (odd, False)
    await world.settled()
    assert "cannot be shared" in caplog.text
    assert await world.worker().get("k", world.compute("b")) == ("b", False)


async def test_without_an_actor_it_is_a_cache_in_memory_with_a_time_to_live(world):
    cache = SharedCache(replace(world.settings, ttl_s=10.0), Codec(), clock=world.time)
    assert await cache.get("k", world.compute()) == ("a", False)
    assert await cache.get("k", world.compute()) == ("a", True)
    world.time.now = 10.0
    assert await cache.get("k", world.compute()) == ("a", False)
    await cache.close()


async def test_what_is_stored_survives_the_actor_and_claims_do_not(world, tmp_path):
    await world.worker().get("k", world.compute())
    await world.settled()
    await world.door.lookup("claimed", 1.0)
    world.door = AnswerCache(world.settings, clock=world.time, wall=world.time)
    assert await world.worker().get("k", world.compute()) == ("a", True)
    assert await world.worker().get("claimed", world.compute("b")) == ("b", False)
