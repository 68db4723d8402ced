"""What workers tell of their load: counted while it lasts, bounded in memory, the same from one worker or many."""

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.endpoints import Asker, Endpoint, Tally
from actors.search.load import REMEMBERED, REMEMBERED_S, EndpointLoad, LoadSample, RollingP95, merged
from actors.search.quota.broker import QuotaBroker
from actors.search.quota.desk import LeaseDesk, LocalSource
from actors.search.quota.settings import QuotaSettings
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import RetrySettings, SearchSettings


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- latency ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_the_p95_is_the_smallest_value_that_covers_95_of_100(values):
    rolling = RollingP95(Time())
    for value in values:
        rolling.add(value)
    p95, count = rolling.value()
    assert count == len(values)
    assert p95 in values
    assert sum(value <= p95 for value in values) >= 0.95 * len(values)
    assert sum(value < p95 for value in values) < 0.95 * len(values)


def test_what_was_long_ago_is_forgotten():
    time = Time()
    rolling = RollingP95(time)
    rolling.add(9.0)
    time.now = REMEMBERED_S
    rolling.add(1.0)
    assert rolling.value() == (9.0, 2)
    time.now += 0.001
    assert rolling.value() == (1.0, 1)
    time.now += REMEMBERED_S
    assert rolling.value() == (0.0, 0)


def test_memory_is_bounded_and_the_latest_count():
    rolling = RollingP95(Time())
    for value in range(10 * REMEMBERED):
        rolling.add(float(value))
    p95, count = rolling.value()
    assert count == REMEMBERED
    assert p95 >= 9 * REMEMBERED


# --- many as one ------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
endpoint_loads = st.builds(
    EndpointLoad, names, st.integers(0, 50), st.integers(0, 50), st.floats(0.01, 20), answered=st.integers(0, 99)
)
samples = st.builds(
    LoadSample,
    st.lists(endpoint_loads, max_size=3, unique_by=lambda load: load.name).map(tuple),
    st.integers(0, 99),
    st.integers(0, 9),
)


@given(st.lists(samples, max_size=5))
def test_counts_add_up_and_the_p95_lies_between_those_of_the_workers(parts):
    whole = merged(parts)
    assert whole.calls == sum(part.calls for part in parts)
    assert whole.resting == sum(part.resting for part in parts)
    assert [load.name for load in whole.endpoints] == sorted({load.name for part in parts for load in part.endpoints})
    for load in whole.endpoints:
        own = [one for part in parts for one in part.endpoints if one.name == load.name]
        assert load.in_provider == sum(one.in_provider for one in own)
        assert load.waiting == sum(one.waiting for one in own)
        assert load.answered == sum(one.answered for one in own)
        p95s = [one.p95_s for one in own]
        assert min(p95s) - 1e-9 <= load.p95_s <= max(p95s) + 1e-9


def test_a_worker_that_has_seen_little_says_little_about_the_p95_and_a_quota_is_taken_once():
    much = EndpointLoad("a", p95_s=1.0, per_second=50, concurrency=9, answered=99)
    whole = merged([LoadSample((much,)), LoadSample((replace(much, p95_s=11.0, answered=1),))]).endpoints[0]
    assert whole.p95_s == pytest.approx(1.1)
    assert (whole.per_second, whole.concurrency) == (50, 9)


def test_calls_elsewhere_are_those_at_no_endpoint_that_do_not_rest():
    at = EndpointLoad("a", in_provider=3, waiting=4)
    assert LoadSample((at,), calls=10, resting=1).elsewhere == 2
    assert LoadSample((at,), calls=5).elsewhere == 0  # requests whose callers have left


def test_a_worker_is_idle_when_neither_calls_nor_requests_are_left():
    assert LoadSample((EndpointLoad("a", p95_s=1.0),)).idle
    assert not LoadSample(calls=1).idle
    assert not LoadSample((EndpointLoad("a", in_provider=1),)).idle


# --- as an Asker counts -----------------------------------------------------------------------------------------------


class Gate:
    """A provider that answers when it is told to, by an error first where there is one."""

    def __init__(self, *errors: Exception) -> None:
        self.open, self.errors = asyncio.Event(), list(errors)

    async def search(self, query):
        if self.errors:
            raise self.errors.pop()
        await self.open.wait()
        return []


def asker_of(clock, sleep=asyncio.sleep, **settings) -> Asker:
    return Asker(SearchSettings(**settings), clock, sleep, random.Random(0))


def ask(asker: Asker, *endpoints: Endpoint) -> asyncio.Task:
    return asyncio.create_task(asker.first_answer(endpoints, lambda provider: provider.search(None), Tally()))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_request_counts_from_when_it_may_be_sent_until_it_ends_and_its_time_is_the_providers():
    time, gate = Time(), Gate()
    asker = asker_of(time, max_concurrency=2)
    asked = [ask(asker, Endpoint("a", gate)) for _ in range(3)]
    await settled()
    assert asker.load() == LoadSample((EndpointLoad("a", in_provider=3),))
    time.now = 0.5
    gate.open.set()
    await asyncio.gather(*asked)
    load = asker.load().endpoints[0]
    assert (load.in_provider, load.p95_s, load.answered) == (0, 0.5, 3)


async def test_requests_without_a_lease_are_told_apart_and_under_which_quota_they_wait():
    time, gate = Time(), Gate()
    quota = QuotaSettings(per_second=7, concurrency=1)
    desk = LeaseDesk("a", LocalSource(QuotaBroker("a", quota)))
    asker = asker_of(time)
    asked = [ask(asker, Endpoint("a", gate, desk=desk, quota=quota)) for _ in range(5)]
    async with asyncio.timeout(10):
        while not any(load.in_provider for load in asker.load().endpoints):
            await asyncio.sleep(0)
    load = asker.load().endpoints[0]
    assert (load.in_provider, load.waiting, load.per_second, load.concurrency) == (1, 4, 7, 1)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert asker.load().endpoints[0].asked == 0
    await desk.close()


async def test_two_providers_under_one_name_are_one_endpoint():
    asker = asker_of(Time())
    desks = [LeaseDesk("a", LocalSource(QuotaBroker("a", QuotaSettings()))) for _ in range(2)]
    asked = [ask(asker, Endpoint("a", Gate(), desk=desk)) for desk in desks]
    await settled()
    assert asker.load().endpoints == (EndpointLoad("a", in_provider=2),)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    for desk in desks:
        await desk.close()


async def test_who_waits_for_the_next_attempt_rests_and_a_failure_has_taken_its_time_too():
    time, may_go_on, gate = Time(), asyncio.Event(), Gate(ProviderError(ErrorKind.RATE, "429", 5.0))

    async def sleep(seconds: float) -> None:
        await may_go_on.wait()

    asker = asker_of(time, sleep, retry=RetrySettings(retries=1))
    asked = ask(asker, Endpoint("a", gate))
    await settled()
    assert asker.load().resting == 1
    assert asker.load().endpoints[0].answered == 1
    assert asker.load().endpoints[0].asked == 0
    may_go_on.set()
    gate.open.set()
    await asked
    assert asker.load().resting == 0
