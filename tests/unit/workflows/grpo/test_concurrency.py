"""How many episodes a sampler plays at a time, against an engine whose KV cache holds only so many."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.grpo.concurrency import AdaptiveConcurrency
from workflows.grpo.ports import SamplerLoad


class Engine:
    """Always asked for more. Beyond `holds` requests it throws them out, and is slower the more it has to."""

    def __init__(self, holds, fast=50.0):
        self.holds, self.fast, self.tokens, self.preempted = holds, fast, 0, 0

    def second(self, running):
        over = max(0, running - self.holds)
        self.preempted += over
        self.tokens += int(self.fast * min(running, self.holds) / (1 + over))
        return SamplerLoad(
            waiting=over, kv_used=min(1.0, running / self.holds), preempted=self.preempted, sampled_tokens=self.tokens
        )


def played(policy, engine, seconds, start=0):
    limits = []
    for now in range(start, start + seconds):
        limits.append(policy.look(float(now), engine.second(policy.limit), policy.limit))
    return limits


def test_without_pressure_it_stays_at_the_most():
    assert set(played(AdaptiveConcurrency(8, 128), Engine(holds=1000), 300)) == {128}


def test_under_pressure_it_falls_to_what_the_cache_holds_and_stays_near():
    limits = played(AdaptiveConcurrency(8, 128), Engine(holds=60), 900)
    assert limits[0] == 96
    assert all(30 <= limit <= 68 for limit in limits[60:])


def test_it_is_cut_once_for_all_that_one_overload_throws_out():
    policy, engine = AdaptiveConcurrency(8, 128), Engine(holds=90)
    policy.look(0.0, engine.second(128), 128)
    assert policy.look(1.0, engine.second(120), 120) == 96  # what is beyond the limit has not ended yet
    assert policy.look(30.0, engine.second(110), 110) == 96
    assert policy.look(31.0, engine.second(96), 96) == 72


def test_when_there_is_room_again_it_rises_step_by_step():
    policy, engine = AdaptiveConcurrency(8, 128), Engine(holds=40)
    played(policy, engine, 120)
    engine.holds = 1000
    limits = played(policy, engine, 300, start=120)
    assert limits[-1] == 128
    assert max(b - a for a, b in pairwise(limits)) == 8


def test_a_step_up_that_makes_nothing_faster_is_the_last_one_for_a_while():
    policy = AdaptiveConcurrency(8, 128)
    policy.look(0.0, SamplerLoad(preempted=1), 128)
    policy.look(10.0, SamplerLoad(preempted=2), 96)
    limits = [policy.look(20.0 + i, SamplerLoad(preempted=2, sampled_tokens=100 * i), policy.limit) for i in range(100)]
    assert limits[-1] == 80  # one step of eight to see what it is worth, no second one
    later = policy.look(200.0, SamplerLoad(preempted=2, sampled_tokens=18000), policy.limit)
    assert later == 88


def test_where_groups_come_as_a_whole_it_rises_though_a_few_places_are_always_free():
    policy, engine, luck = AdaptiveConcurrency(8, 128), Engine(holds=1000), random.Random(3)
    policy.look(0.0, SamplerLoad(preempted=1), 128)
    for now in range(10, 200):
        running = luck.randint(policy.limit - 7, policy.limit)  # a group of eight is seated when all have places
        policy.look(float(now), engine.second(running), running)
    assert policy.limit == 128


def test_with_places_left_over_it_is_not_raised():
    policy, engine = AdaptiveConcurrency(8, 128), Engine(holds=1000)
    policy.look(0.0, SamplerLoad(preempted=1), 128)
    assert {policy.look(float(now), engine.second(20), 20) for now in range(10, 200)} == {96}


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.integers(0, 3), st.integers(0, 300)), max_size=80))
def test_it_is_always_within_its_bounds(looks):
    policy, preempted = AdaptiveConcurrency(4, 64), 0
    for now, (kv, waiting, more, running) in enumerate(looks):
        preempted += more
        before = policy.limit
        limit = policy.look(3.0 * now, SamplerLoad(waiting=waiting, kv_used=kv, preempted=preempted), running)
        assert 4 <= limit <= 64
        if not more and kv < 0.95:
            assert limit >= before


def test_bounds_that_are_none_are_refused():
    with pytest.raises(ValueError, match="least"):
        AdaptiveConcurrency(9, 8)
