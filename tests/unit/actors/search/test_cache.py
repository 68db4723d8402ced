import asyncio

import pytest

from actors.search.cache import SingleFlightCache, paid, request_key


def test_a_key_depends_on_what_is_asked_not_on_the_order_of_its_parts():
    assert request_key(tool="t", k=5) == request_key(k=5, tool="t")
    assert request_key(tool="t", k=5) != request_key(tool="t", k="5")


async def test_a_hundred_identical_requests_make_one_flight():
    cache: SingleFlightCache[int] = SingleFlightCache(10)
    started, release = 0, asyncio.Event()

    async def compute() -> int:
        nonlocal started
        started += 1
        await release.wait()
        return 7

    callers = [asyncio.create_task(cache.get("key", compute)) for _ in range(100)]
    await asyncio.sleep(0)
    release.set()
    answers = await asyncio.gather(*callers)
    assert started == 1
    assert [answer for answer, _ in answers] == [7] * 100
    assert sum(not shared for _, shared in answers) == 1
    assert await cache.get("key", compute) == (7, True)


async def test_the_least_recently_used_answer_goes_first():
    cache: SingleFlightCache[str] = SingleFlightCache(2)

    def answer(text: str):
        async def compute() -> str:
            return text

        return compute

    await cache.get("a", answer("a"))
    await cache.get("b", answer("b"))
    await cache.get("a", answer("again"))
    await cache.get("c", answer("c"))
    assert await cache.get("a", answer("again")) == ("a", True)
    assert await cache.get("b", answer("again")) == ("again", False)
    assert len(cache) == 2


async def test_errors_reach_everyone_and_are_not_kept():
    cache: SingleFlightCache[int] = SingleFlightCache(2)

    async def broken() -> int:
        await asyncio.sleep(0)
        raise ConnectionError("cut")

    async def whole() -> int:
        return 1

    outcomes = await asyncio.gather(cache.get("key", broken), cache.get("key", broken), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionError, ConnectionError]
    assert await cache.get("key", whole) == (1, False)


async def test_a_caller_that_leaves_takes_nothing_from_its_siblings():
    cache: SingleFlightCache[int] = SingleFlightCache(2)
    release = asyncio.Event()

    async def compute() -> int:
        await release.wait()
        return 3

    first = asyncio.create_task(cache.get("key", compute))
    second = asyncio.create_task(cache.get("key", compute))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()
    assert await second == (3, True)


async def test_closing_cancels_what_is_under_way():
    cache: SingleFlightCache[int] = SingleFlightCache(2)

    async def forever() -> int:
        await asyncio.Event().wait()
        return 0

    caller = asyncio.create_task(cache.get("key", forever))
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(cache) == 0


async def test_what_nobody_waits_for_any_more_is_finished_only_if_it_was_paid_for():
    cache, gate, finished = SingleFlightCache(10), asyncio.Event(), []

    async def compute(key: str, pays: bool) -> str:
        if pays:
            paid()
        await gate.wait()
        finished.append(key)
        return key

    callers = [
        asyncio.create_task(cache.get(key, lambda key=key: compute(key, key == "paid"))) for key in ("paid", "free")
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert finished == ["paid"]
    assert await cache.get("paid", lambda: compute("again", False)) == ("paid", True)
    assert await cache.get("free", lambda: compute("anew", False)) == ("anew", False)


async def test_one_caller_that_stays_keeps_an_unpaid_flight_alive():
    cache, gate = SingleFlightCache(10), asyncio.Event()

    async def compute() -> str:
        await gate.wait()
        return "answer"

    leaves, stays = (asyncio.create_task(cache.get("key", compute)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    gate.set()
    assert await stays == ("answer", True)
