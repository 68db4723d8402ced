import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.store import flights as flights_module
from actors.search.store.flights import Claim, Flights, Told
from actors.search.store.records import Answer, Kind

ANSWER = Answer(Kind.TEXT, b'"a"')
BRIEF = 0.01  # seconds of the real clock


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


async def waiting(flights, n, key="k", wait_s=1000.0):
    """Tasks that have asked and wait."""
    tasks = [asyncio.create_task(flights.turn(key, wait_s)) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


async def test_the_first_asks_for_all_and_the_others_get_its_answer(time):
    flights = Flights(10, time)
    first = await flights.turn("k", 1000)
    assert isinstance(first, Claim)
    assert first.seconds == 10
    others = await waiting(flights, 99)
    assert not any(task.done() for task in others)
    flights.land("k", ANSWER)
    assert await asyncio.gather(*others) == [ANSWER] * 99
    assert len(flights) == 0


async def test_different_keys_do_not_wait_for_each_other(time):
    flights = Flights(10, time)
    assert isinstance(await flights.turn("a", 1000), Claim)
    assert isinstance(await flights.turn("b", 1000), Claim)


async def test_an_error_is_told_to_those_who_wait_now_and_forgotten(time):
    flights = Flights(10, time)
    claim = flights.claim("k")
    others = await waiting(flights, 3)
    error = ConnectionError("cut")
    flights.fail("k", claim.token, error)
    assert await asyncio.gather(*others) == [Told(error)] * 3
    assert isinstance(await flights.turn("k", 1000), Claim)


async def test_a_claim_given_back_without_an_error_goes_to_exactly_one_of_those_who_wait(time):
    flights = Flights(10, time)
    claim = flights.claim("k")
    others = await waiting(flights, 5)
    flights.fail("k", claim.token, None)
    done, pending = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    assert [isinstance(task.result(), Claim) for task in done] == [True]
    assert len(pending) == 4
    flights.land("k", ANSWER)
    assert await asyncio.gather(*pending) == [ANSWER] * 4


def test_a_silent_owner_loses_the_claim_and_one_that_speaks_keeps_it(time):
    async def run():
        flights = Flights(10, time)
        claim = flights.claim("k")
        time.now = 9.0
        assert flights.claim("k") is None
        assert flights.renew("k", claim.token)
        time.now = 18.9
        assert flights.claim("k") is None
        time.now = 19.0
        second = flights.claim("k")
        assert second is not None
        assert flights.lapsed == 1
        assert not flights.renew("k", claim.token)
        assert not flights.renew("none", claim.token)
        assert flights.renew("k", second.token)

    asyncio.run(run())


async def test_the_next_who_waits_takes_over_from_a_dead_owner_and_serves_the_rest(time):
    flights = Flights(BRIEF, time)
    flights.claim("k")
    others = await waiting(flights, 5)
    time.now = BRIEF
    done, pending = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    assert [isinstance(task.result(), Claim) for task in done] == [True]
    flights.land("k", ANSWER)
    assert await asyncio.gather(*pending) == [ANSWER] * 4


async def test_nobody_waits_longer_than_they_said():
    flights = Flights(60, asyncio.get_running_loop().time)
    flights.claim("k")
    assert await flights.turn("k", BRIEF) is None


async def test_the_answer_of_an_owner_thought_dead_still_serves_all_but_its_error_does_not(time):
    flights = Flights(10, time)
    late = flights.claim("k")
    time.now = 11.0
    assert flights.claim("k") is not None
    others = await waiting(flights, 2)
    flights.fail("k", late.token, ConnectionError("cut"))
    await asyncio.sleep(0)
    assert not any(task.done() for task in others)
    flights.land("k", ANSWER)
    assert await asyncio.gather(*others) == [ANSWER] * 2


async def test_those_who_left_take_nothing_from_those_who_wait(time):
    flights = Flights(10, time)
    flights.claim("k")
    one, two = await waiting(flights, 2)
    one.cancel()
    await asyncio.sleep(0)
    flights.land("k", ANSWER)
    assert await two == ANSWER
    assert one.cancelled()


async def test_dead_flights_that_nobody_waits_for_are_forgotten(time, monkeypatch):
    monkeypatch.setattr(flights_module, "SWEEP_AT", 8)
    flights = Flights(10, time)
    for i in range(100):
        time.now += 5.0
        flights.claim(f"k{i}")
    assert len(flights) <= 16


@given(st.lists(st.tuples(st.sampled_from(["claim", "renew", "fail", "land", "wait"]), st.sampled_from("ab"))))
def test_at_most_one_claim_per_key_is_valid_and_a_silent_key_is_never_stuck(steps):
    async def run():
        time = Time()
        flights = Flights(10, time)
        held: dict[str, list[tuple[str, float]]] = {"a": [], "b": []}  # (token, last word of its owner)
        for step, key in steps:
            if step == "wait":
                time.now += 4.0
            elif step == "land":
                flights.land(key, ANSWER)
                held[key] = []
            elif step == "claim":
                valid = [token for token, at in held[key] if at + 10 > time.now]
                claim = flights.claim(key)
                assert (claim is None) == (len(valid) == 1)
                if claim is not None:
                    held[key] = [(claim.token, time.now)]
            elif held[key]:
                token = held[key][0][0]
                if step == "renew":
                    assert flights.renew(key, token)
                    held[key] = [(token, time.now)]
                else:
                    flights.fail(key, token, None)
                    held[key] = []

    asyncio.run(run())
