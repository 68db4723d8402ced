"""The pool's size in virtual time: bounds, turns, how soon it follows a step, and what is never taken for load."""

import heapq
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.load import EndpointLoad, LoadSample, RollingP95
from actors.search.scaling import ScalingPolicy, most_at_once, useful_concurrency
from actors.search.settings import PoolSettings

SETTINGS = PoolSettings(min=1, max=20, per_actor=16)


def busy(requests: int) -> LoadSample:
    """So many requests at an endpoint that nothing bounds."""
    return LoadSample((EndpointLoad("local", in_provider=requests),), calls=requests)


def limited(in_provider: int, waiting: int, p95_s: float = 1.66, per_second: float = 50.0, **more) -> LoadSample:
    """So many calls at an endpoint with a quota, of which some answers have come."""
    load = EndpointLoad("paid", in_provider, waiting, p95_s, per_second, answered=100, **more)
    return LoadSample((load,), calls=in_provider + waiting)


# --- what is useful ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "useful"),
    [
        (LoadSample(), 0),
        (busy(40), 40),
        (limited(28, 5), 33),  # the demand is below quota x p95
        (limited(28, 500), 83),  # 50/s x 1.66 s
        (limited(28, 500, concurrency=30), 30),
        (limited(10, 500, per_second=0, concurrency=30), 30),
        (limited(10, 500, per_second=0), 10),  # nothing bounds them but a pause: they wait for its end
        (LoadSample((EndpointLoad("paid", 4, 99, 0.0, 50.0),), calls=103), 4),  # nobody has answered yet
        (LoadSample((*limited(28, 500).endpoints, replace(limited(4, 0).endpoints[0], name="idle")), 532), 87),
        (LoadSample((), calls=7), 7),
        (LoadSample((), calls=7, resting=5), 2),
        (replace(busy(4), calls=10), 10),
        (replace(limited(28, 500), calls=900), 83),  # siblings that follow those who wait
        (replace(limited(28, 5), calls=900), 83),
    ],
)
def test_useful_is_what_runs_at_once_and_not_what_waits_for_a_quota(sample, useful):
    assert useful_concurrency(sample) == pytest.approx(useful)


def test_the_number_is_the_useful_concurrency_over_that_of_one_worker_rounded_up_and_within_bounds():
    policy = ScalingPolicy(replace(SETTINGS, min=2, max=5))
    assert [policy.wanted(busy(n)) for n in (0, 16, 33, 64, 65, 81, 10_000)] == [2, 2, 3, 4, 5, 5, 5]


def test_rounding_does_not_cost_a_worker():
    assert 0.1 * 3 * 160 > 48
    assert ScalingPolicy(SETTINGS).wanted(limited(9, 999, p95_s=0.1 * 3, per_second=160)) == 3


counts = st.integers(0, 300)
endpoints = st.builds(
    EndpointLoad,
    st.just("e"),
    counts,
    counts,
    st.floats(0.01, 5),
    st.sampled_from([0.0, 1.0, 50.0]),
    st.sampled_from([0, 10]),
    st.sampled_from([0, 40]),
)


@st.composite
def load_samples(draw):
    loads = draw(st.lists(endpoints, max_size=3))
    loads = tuple(replace(load, name=f"e{i}") for i, load in enumerate(loads))
    return LoadSample(loads, sum(load.asked for load in loads) + draw(counts), draw(st.integers(0, 20)))


@given(load_samples(), st.data())
def test_one_call_more_never_makes_less_useful(sample, data):
    before = useful_concurrency(sample)
    assert useful_concurrency(replace(sample, calls=sample.calls + 1)) >= before - 1e-9
    if sample.endpoints:
        i = data.draw(st.integers(0, len(sample.endpoints) - 1))
        field = data.draw(st.sampled_from(["in_provider", "waiting"]))
        grown = list(sample.endpoints)
        grown[i] = replace(grown[i], **{field: getattr(grown[i], field) + 1})
        assert useful_concurrency(LoadSample(tuple(grown), sample.calls + 1, sample.resting)) >= before - 1e-9


@given(load_samples(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_all_endpoints_together_are_never_worth_more_than_their_quotas(sample, waiting, following):
    flooded = tuple(replace(load, waiting=load.waiting + waiting) for load in sample.endpoints)
    calls = sample.calls + waiting * len(flooded) + following
    useful = useful_concurrency(LoadSample(flooded, calls))
    if sample.endpoints:
        assert useful <= sum(map(most_at_once, sample.endpoints)) + 1e-6


# --- in time ----------------------------------------------------------------------------------------------------------


def play(settings: PoolSettings, demand, seconds: int, policy: ScalingPolicy | None = None) -> list[int]:
    """The number of workers at the end of every second under `demand(second)` requests."""
    policy, current, sizes = policy or ScalingPolicy(settings), settings.min, []
    for second in range(seconds):
        current = policy.decide(float(second), current, busy(demand(second)))
        sizes.append(current)
    return sizes


def turns(sizes: list[int]) -> list[int]:
    """The seconds at which the direction changed."""
    moves = [(second, b > a) for second, (a, b) in enumerate(pairwise(sizes), 1) if a != b]
    return [second for (_, before), (second, up) in pairwise(moves) if before != up]


def test_a_step_is_followed_after_two_seconds_and_left_thirty_seconds_after_its_end():
    sizes = play(SETTINGS, lambda second: 90 if 10 <= second < 40 else 0, 100)
    assert sizes == [1] * 12 + [6] * 58 + [1] * 30


def test_a_short_burst_moves_nothing():
    assert set(play(SETTINGS, lambda second: 900 if second % 20 < 2 else 0, 200)) == {1}


def test_a_pause_between_two_bursts_costs_no_worker():
    assert play(SETTINGS, lambda second: 90 if second % 20 < 5 else 0, 400)[2:] == [6] * 398


def test_an_end_that_comes_while_no_turn_is_allowed_is_followed_when_one_is():
    demand = [0] * 5 + [90] * 5 + [0] * 40 + [90] * 65 + [0] * 70
    sizes = play(SETTINGS, lambda second: demand[second], len(demand))
    # up 7, down 40 (a turn); the second step, at 50, has to wait until 100 (a turn); it ends at 115: down 160
    assert [i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]] == [7, 40, 100, 160]


def test_what_was_wanted_only_for_a_moment_is_not_what_it_grows_to():
    demand = [0, 300, 90, 300, 90, 300, 90]
    assert play(SETTINGS, lambda second: demand[second], 7)[-1] == 6


def test_it_shrinks_to_what_the_busiest_moment_of_the_window_needed():
    assert play(SETTINGS, lambda second: 300 if second < 10 else 40, 60)[-1] == 3


def test_a_number_outside_the_bounds_is_mended_at_once():
    settings = replace(SETTINGS, min=2, max=4)
    assert ScalingPolicy(settings).decide(0, 1, LoadSample()) == 2
    assert ScalingPolicy(settings).decide(0, 9, busy(900)) == 4


def test_whoever_is_there_at_the_first_look_stays_for_the_window():
    policy = ScalingPolicy(SETTINGS)
    sizes = [policy.decide(second, 5, LoadSample()) for second in range(32)]
    assert sizes[29:] == [5, 1, 1]


def test_what_only_waits_for_the_quota_never_adds_a_worker():
    policy, current = ScalingPolicy(SETTINGS), 2
    for second in range(300):
        current = policy.decide(second, current, limited(16, 10_000 * second, p95_s=0.6))
        assert current == 2


def test_memory_does_not_grow_with_decisions():
    policy, current = ScalingPolicy(SETTINGS), 1
    for i in range(20_000):
        current = policy.decide(i * 0.1, current, busy(i % 300))
    assert len(policy._wanted) <= 302


@pytest.mark.parametrize("seed", range(5))
def test_a_provider_with_a_long_tail_is_followed_as_far_as_its_quota_goes(seed):
    """200 calls a second for two minutes, of which 50 may be sent; log-normal latency, median 0.4 s, p99 3 s."""
    rng, now, sigma = random.Random(seed), 0.0, math.log(3 / 0.4) / 2.326
    p95 = RollingP95(lambda: now)
    policy, current, sizes = ScalingPolicy(SETTINGS), 1, []
    in_provider: list[tuple[float, float]] = []  # (end, latency)
    waiting = 0
    for step in range(250 * 50):
        now = step / 50
        waiting += 4 if now < 120 else 0
        while in_provider and in_provider[0][0] <= now:
            p95.add(heapq.heappop(in_provider)[1])
        if now > 125:
            waiting = 0  # who still waits has reached its deadline
        if waiting:
            waiting -= 1
            latency = 0.4 * math.exp(rng.gauss(0, sigma))
            heapq.heappush(in_provider, (now + latency, latency))
        if step % 50 == 0:
            value, answered = p95.value()
            load = EndpointLoad("paid", len(in_provider), waiting, value, 50.0, answered=answered)
            current = policy.decide(now, current, LoadSample((load,), load.asked))
            sizes.append(current)
    steady = 0.4 * math.exp(1.645 * sigma) * 50 / 16  # 5.2 workers
    assert sizes[15] >= math.floor(steady)
    assert max(sizes) <= math.ceil(steady) + 2  # a p95 of 512 is known to a fifth or so
    assert sizes[125 + 60] == 1
    assert len(turns(sizes)) == 1


steps = st.lists(
    st.tuples(st.integers(1, 150), st.sampled_from([0, 0, 10, 20, 100, 200, 5000])), min_size=1, max_size=12
)
bounds = st.tuples(st.integers(1, 4), st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair)))


@given(steps, bounds)
def test_under_any_steps_bounds_turns_and_times_are_kept(steps, bounds):
    settings = replace(SETTINGS, min=bounds[0], max=bounds[1])
    demand = [level for seconds, level in steps for _ in range(seconds)]
    sizes = play(settings, demand.__getitem__, len(demand))
    assert all(settings.min <= size <= settings.max for size in sizes)
    turned = turns([settings.min, *sizes])
    assert all(b - a >= 60 for a, b in pairwise(turned))

    begin = 0
    for seconds, level in steps:
        end = begin + seconds
        target = ScalingPolicy(settings).wanted(busy(level))
        if seconds > 60:  # back, to what is needed now, whatever happened before
            assert max(sizes[begin + 60 : end]) <= target
        free = not any(begin - 60 < second - 1 < begin + 15 for second in turned)
        if seconds > 15 and free:
            assert min(sizes[begin + 15 : end]) >= target
        begin = end


@given(st.lists(st.integers(0, 400), min_size=1, max_size=200), st.integers(0, 200))
def test_more_demand_at_every_moment_never_gives_a_smaller_first_growth(demand, more):
    def first_peak(extra: int) -> int:
        sizes = play(replace(SETTINGS, down_after_s=math.inf), lambda second: demand[second] + extra, len(demand))
        return max(sizes)

    assert first_peak(more) >= first_peak(0)
