"""Who is hit when, and what the kills come to."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.bench.chaos_kills import (
    CONTROLLER,
    VICTIMS,
    ChaosForm,
    Kill,
    bag,
    costs,
    over,
    rate,
    repeated,
    speeds,
    whole,
)

EVERY = [Kill(victim.name, 0.0, 0, victim.bound_s) for victim in VICTIMS]


def steps(*times):
    """One episode each."""
    return [(float(at), 1.0) for at in times]


def kill(at_s, whole_s, **more):
    return Kill("sampler", at_s, 1, 45.0, whole_s, **more)


@given(st.integers(0, 1000), st.integers(1, 4))
def test_nobody_is_hit_again_before_all_were_hit(seed, rounds):
    n = len(VICTIMS)
    drawn = [victim.name for victim in islice(bag(seed), rounds * n)]
    assert all(len(set(drawn[i * n : (i + 1) * n])) == n for i in range(rounds))
    assert drawn == [victim.name for victim in islice(bag(seed), rounds * n)]


def test_seeds_differ_in_whom_they_hit_first():
    assert len({next(bag(seed)).name for seed in range(50)}) == len(VICTIMS)


def test_it_is_over_when_there_is_no_time_for_another_kill_and_all_kinds_were_hit():
    form = ChaosForm(minutes=3, every_s=20)
    assert not over(form, 159.9, EVERY)
    assert over(form, 160.0, EVERY)
    assert not over(form, 1000.0, EVERY[1:])


def test_before_the_first_kill_the_run_is_left_alone_for_a_tenth_of_the_time():
    assert ChaosForm(minutes=30, every_s=60).quiet_s == 180
    assert ChaosForm(minutes=3, every_s=20).quiet_s == 20


BEFORE = "GRPO: continuing after step 1 of 100\nstep 2: reward 0.5\nstep 7: reward 0.5\n"


@pytest.mark.parametrize(("last", "steps"), [(7, 0), (6, 1), (4, 3), (9, 0)])
def test_steps_are_done_again_from_where_the_run_continues(last, steps):
    log = f"{BEFORE}it ended\nGRPO: continuing after step {last} of 100\nstep 8: reward 0.5\n"
    assert repeated(log, len(BEFORE)) == steps


def test_a_restart_before_the_kill_costs_it_nothing():
    assert repeated(f"step 9: x\n{BEFORE}", len(BEFORE)) == 0
    assert repeated("GRPO: continuing after step 0 of 9\n", 0) == 0


def test_a_run_that_begins_again_is_whole_with_its_first_step():
    for victim in (CONTROLLER, next(victim for victim in VICTIMS if victim.name == "learner rank")):
        assert not whole(victim, "step 8: of before it died\n", 7, 9, True)
        again = "step 8: of before it died\nGRPO: continuing after step 7 of 9\n"
        assert not whole(victim, again, 7, 9, True)
        assert whole(victim, again + "step 8: made again\n", 7, 7, False)
        assert not whole(victim, again + "step 8: made again\n" + again, 7, 9, True)


def test_a_sampler_is_whole_when_it_is_back_and_a_worker_with_another_one_and_the_step_after_the_next():
    sampler, worker = VICTIMS[0], next(victim for victim in VICTIMS if victim.name == "search worker")
    assert whole(sampler, "sampler-0 is fenced\nsampler-0 is back\n", 7, 7, False)
    assert not whole(sampler, "sampler-0 is fenced\n", 7, 99, True)
    assert [whole(worker, "", 7, now, True) for now in (7, 8, 9)] == [False, False, True]
    assert not whole(worker, "", 7, 99, False)


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 100), st.floats(0, 100))
def test_a_rate_counts_what_lies_in_its_windows_alone(times, start, end):
    expected = sum(start < time <= end for time in times) / (end - start) if end > start else None
    assert rate(steps(*times), [(start, end)]) == (pytest.approx(expected) if expected is not None else None)


def test_an_even_run_has_the_same_speed_before_and_between_kills():
    """A step every 5 s: from the first one to the kill at 30, from 50 to 70, and from 90 to the last one."""
    made = steps(10, 15, 20, 25, 30, 50, 55, 60, 65, 70, 90, 95, 100)
    found = speeds(made, [kill(30.0, 20.0), kill(70.0, 20.0)])
    assert found["undisturbed_per_s"] == pytest.approx(0.2)
    assert found["between_per_s"] == pytest.approx(0.2)
    assert found["speed_reached"] is True


def test_nine_tenths_of_the_speed_are_asked_for():
    quiet = range(11)  # a step a second until the kill at 10
    between = {
        n: speeds(steps(*quiet, *(20 + 20 * (i + 1) / n for i in range(n))), [kill(10.0, 10.0)]) for n in (17, 18)
    }
    assert [found["speed_reached"] for found in between.values()] == [False, True]


def test_a_kill_is_late_beyond_its_target():
    assert [kill(0.0, seconds).late for seconds in (45.0, 45.1)] == [False, True]


def test_steps_made_while_the_run_was_not_whole_count_for_no_speed():
    found = speeds(steps(0, 10, 20, 21, 22, 23, 40, 50), [kill(20.0, 20.0)])
    assert (found["undisturbed_per_s"], found["between_per_s"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_steps_that_take_longer_because_more_is_sampled_for_them_are_no_slower():
    made = [(10.0, 8.0), (20.0, 8.0), (30.0, 8.0), (70.0, 16.0), (90.0, 16.0)]
    assert speeds(made, [kill(30.0, 20.0)])["speed_reached"] is True


def test_without_a_kill_or_a_step_there_are_no_speeds():
    nothing = {"undisturbed_per_s": None, "between_per_s": None, "speed_reached": None}
    assert speeds([], [kill(1.0, 1.0)]) == speeds(steps(1, 2), []) == nothing


def test_a_kill_may_cost_one_step_and_no_process_left_behind():
    assert costs([kill(0, 1, repeated=1)]) == []
    (lost,) = costs([kill(0, 1, repeated=2)])
    assert "2 steps were done again after a kill of the sampler" in lost
    assert costs([kill(0, 1, left=("VLLM::EngineCore",))]) == ["VLLM::EngineCore outlived its sampler"]
