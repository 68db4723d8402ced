"""What is made of the service's answers, and when it counts as reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.bench import serve_figures as figures
from workflows.bench.serve_exchange import Exchange, Outcome
from workflows.bench.serve_figures import Death, SidePass, Swap, Verdict, capacity, growth, quantile, rate


def answered(began, seconds=0.2, **more):
    return Exchange(began, began + seconds, Outcome.ANSWERED, 200, **{"version": 1, **more})


def refused(began, after=2.0):
    return Exchange(began, began + 0.01, Outcome.REFUSED, 429, retry_after_s=after)


def failed(began, seconds=0.2, problem="dead", shaped=True):
    return Exchange(began, began + seconds, Outcome.FAILED, 503, problem, shaped)


def hung(began, seconds=40.0):
    return Exchange(began, began + seconds, Outcome.HUNG, problem="no end", shaped=False)


def verdict(told, says):
    [one] = [one for one in told["verdicts"] if says in one["says"]]
    return one


def test_a_figure_at_its_bound_is_reached_and_one_that_was_not_measured_is_not():
    assert Verdict("", 15.0, 15.0, "ms").reached
    assert not Verdict("", 15.1, 15.0, "ms").reached
    assert not Verdict("", None, 15.0, "ms").reached


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_one_of_the_values_and_that_share_do_not_exceed_it(values, share):
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_of_nothing_there_is_no_quantile():
    assert quantile([], 0.5) is None


def test_a_rate_leaves_out_the_time_in_which_a_crowd_gathers():
    ended = [0.1] * 50 + [3.0, 5.0, 9.0, 10.0, 11.0]  # of 10 s, the first two do not count
    assert rate(ended, 0.0, 10.0) == 4 / 8


# --- overhead ---------------------------------------------------------------------------------------------------------


def test_overhead_is_the_median_of_pairs_and_the_noise_is_a_sides_own():
    ours = [SidePass((0.110, 0.210, 0.330), (5, 6, 7), 80.0), SidePass((0.114, 0.214, 0.334), (5, 6, 7), 82.0)]
    bare = [SidePass((0.100, 0.200, 0.300), (5, 6, 7), 100.0), SidePass((0.101, 0.201, 0.301), (5, 6, 7), 100.0)]
    told = figures.overhead(ours, bare)
    assert told["by_pass_ms"] == pytest.approx([10.0, 13.0])
    assert told["median_ms"] == pytest.approx(13.0)
    assert told["noise_ms"] == pytest.approx(4.0)
    assert told["throughput_cost"] == pytest.approx(0.19)
    assert all(one["reached"] for one in told["verdicts"])


def test_questions_that_took_other_work_are_not_compared():
    ours = [SidePass((0.110, 9.0), (5, 60), 10.0)]
    told = figures.overhead(ours, [SidePass((0.100, 0.2), (5, 6), 10.0)])
    assert (told["median_ms"], told["same_work"]) == (pytest.approx(10.0), 0.5)
    assert told["noise_ms"] is None
    nothing = figures.overhead(ours, [SidePass((0.1, 0.2), (1, 1), 10.0)])
    assert not verdict(nothing, "median")["reached"]


def test_a_service_that_is_too_slow_misses_both():
    told = figures.overhead([SidePass((0.2,), (1,), 70.0)], [SidePass((0.1,), (1,), 100.0)])
    assert [one["reached"] for one in told["verdicts"]] == [False, False]


# --- steps and load ---------------------------------------------------------------------------------------------------


def test_steps_are_those_of_clients_that_are_alone_and_texts_of_all():
    alone = [answered(0, first_step_s=0.05, texts_per_s=3), answered(1, first_step_s=0.2, texts_per_s=3)]
    told = figures.steps(alone, [answered(2, first_step_s=9.0, texts_per_s=25)])
    assert told["first_step_median_ms"] == 50.0
    assert [one["reached"] for one in told["verdicts"]] == [True, False, False]
    assert figures.steps([answered(0), failed(1)], [])["problems"] == ["1 requests failed, most of them: dead"]


def test_the_capacity_is_that_of_the_fewest_clients_that_get_nearly_the_most():
    assert capacity({8: 40.0, 16: 96.0, 32: 100.0, 64: 99.0}) == 16
    assert capacity({8: 40.0, 16: 90.0, 32: 100.0}) == 32


STEADY = [(float(at), {"agent": 100.0, "engine": 400.0}) for at in range(0, 101, 5)]


def test_an_overload_that_is_borne():
    load = [*(answered(i, 1.5) for i in range(100)), *(refused(i) for i in range(100))]
    told = figures.overload(load, 1.0, STEADY, deadline_s=40.0, unsent=0)
    assert told["problems"] == []
    assert all(one["reached"] for one in told["verdicts"])
    assert told["outcomes"] == {"answered": 100, "refused": 100, "failed": 0, "hung": 0}
    assert told["refused_after_ms"]["p99"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("load", "unsent", "says"),
    [
        ([failed(0)], 0, "1 requests failed"),
        ([hung(0)], 0, "1 requests hung"),
        ([hung(0, 41.0)], 0, "after their deadline"),
        ([refused(0, None)], 0, "no Retry-After"),
        ([answered(0)], 3, "3 requests were not sent"),
        ([failed(0, shaped=False)], 0, "not OpenAI's shape"),
    ],
)
def test_what_must_not_happen_in_an_overload_is_a_problem(load, unsent, says):
    told = figures.overload(load, 1.0, STEADY, deadline_s=40.0, unsent=unsent)
    assert any(says in problem for problem in told["problems"]), told["problems"]


def test_a_slow_tail_and_growing_memory_are_missed():
    grown = [(at, {"agent": 100.0 + at}) for at, _ in STEADY]
    told = figures.overload([answered(0, 2.5)], 1.0, grown, deadline_s=40.0, unsent=0)
    assert not verdict(told, "p99")["reached"]
    assert not verdict(told, "memory")["reached"]


def test_memory_of_another_machine_is_no_figure():
    told = figures.overload([answered(0)], 1.0, None, deadline_s=40.0, unsent=0)
    assert not [one for one in told["verdicts"] if "memory" in one["says"]]


def test_memory_before_warm_up_does_not_count_and_roles_are_told_apart():
    often = [(at / 10, {}) for at in range(200)]
    memory = [
        (at, {"agent": 50.0 if at < 20 else 100.0, "engine": 400.0 + (40 if at > 70 else 0)})
        for at, _ in often + STEADY
    ]
    grown = growth(memory)
    assert grown["agent"] == 0.0
    assert grown["engine"] == pytest.approx(0.1)
    assert grown["all"] == pytest.approx(0.08)


def test_of_looks_that_were_too_few_nothing_is_said():
    assert growth([]) == growth([(0.0, {"agent": 1.0}), (10.0, {"agent": 2.0})]) == {}


def test_a_process_that_comes_later_is_growth():
    memory = [(at, {"agent": 100.0} | ({"other": 50.0} if at > 70 else {})) for at, _ in STEADY]
    assert growth(memory)["all"] == pytest.approx(0.5)


# --- weights and deaths -----------------------------------------------------------------------------------------------


def test_a_swap_without_a_failure():
    load = [answered(0), answered(10.1, 0.4), answered(10.2, 0.3, version=2), answered(12, version=2)]
    told = figures.swaps(load, [Swap(10.0, 11.0, 2)])
    assert told["problems"] == []
    assert told["versions"] == {"1": 2, "2": 2}
    assert told["everywhere_s"] == [pytest.approx(0.5)]
    assert verdict(told, "failed")["reached"]


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (failed(10.0), "1 requests failed"),
        (hung(10.0), "1 requests hung"),
        (answered(11.5), "older weights"),
        (answered(10.5, version=-1), "does not say which weights"),
    ],
)
def test_what_must_not_happen_while_weights_are_swapped_is_a_problem(one, says):
    told = figures.swaps([answered(0), one], [Swap(10.0, 11.0, 2)])
    assert any(says in problem for problem in told["problems"]), told["problems"]


def test_a_death_that_costs_only_what_was_in_flight():
    load = [answered(8.0), failed(9.9, 0.3), answered(9.95, 3.0), answered(10.5, 19.0), refused(11.0)]
    told = figures.deaths(load, [Death(10.0, 30.0)], 1)
    assert told["problems"] == []
    assert (told["failed_in_flight"], told["in_flight"], told["refused"]) == (1, [2], 1)
    assert told["whole_s"] == [20.0]
    assert told["longest_gap_s"] == [pytest.approx(16.55)]
    assert all(one["reached"] for one in told["verdicts"])


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (failed(10.1), "1 requests failed that were not in flight"),
        (failed(5.0), "1 requests failed that were not in flight"),
        (failed(9.9, shaped=False), "not OpenAI's shape"),
        (hung(9.9), "1 requests hung"),
    ],
)
def test_what_a_death_must_not_cost_is_a_problem(one, says):
    told = figures.deaths([one], [Death(10.0, 12.0)], 1)
    assert any(says in problem for problem in told["problems"]), told["problems"]


def test_of_two_agents_the_dead_one_can_have_cost_no_more_than_it_had():
    def beside(failing, held):
        load = [*(failed(9.9) for _ in range(failing)), *(answered(9.9) for _ in range(16 - failing))]
        told = figures.deaths(load, [Death(10.0, 12.0, held)], 2)
        assert (told["failed_in_flight"], told["in_flight"]) == (min(failing, max(8, held)), [16])
        assert verdict(told, "beside")["reached"] == (told["problems"] == [])
        return verdict(told, "beside")["value"]

    assert (beside(8, 0), beside(9, 0), beside(16, 0)) == (0, 1, 8)
    assert (beside(10, 10), beside(16, 10)) == (0, 6)  # they were not spread evenly


def test_of_one_agent_all_that_was_in_flight_may_fail():
    told = figures.deaths([failed(9.9) for _ in range(16)], [Death(10.0, 12.0, 3)], 1)
    assert (told["failed_in_flight"], told["problems"]) == (16, [])


def test_one_death_does_not_excuse_what_another_cost():
    load = [*(failed(9.9) for _ in range(4)), *(answered(19.9) for _ in range(4))]
    told = figures.deaths(load, [Death(10.0, 12.0), Death(20.0, 22.0)], 2)
    assert verdict(told, "beside")["value"] == 2


def test_who_waited_out_a_death_does_not_make_a_silence_usual():
    every_half = [answered(i / 2, 0.4) for i in range(20)]
    waited = [answered(9.9, 6.0), *(answered(i, 6.0) for i in range(10, 20))]
    told = verdict(figures.deaths([*every_half, *waited], [Death(10.0, 20.0)], 2), "without an answer")
    assert (told["bound"], told["reached"]) == (2.0, False)
    slow = [answered(i, 3.0) for i in range(7)]  # usual before anything died
    assert verdict(figures.deaths(slow, [Death(10.0, 10.5)], 2), "without an answer")["bound"] == 3.0


def test_a_service_that_does_not_become_whole_is_a_problem_and_misses_its_time():
    told = figures.deaths([answered(0)], [Death(1.0, 2.0), Death(10.0, None)], 1)
    assert "the service did not become whole again" in told["problems"]
    assert not verdict(told, "whole again")["reached"]


def test_with_two_agents_there_must_always_be_an_answer():
    every_half = [answered(i / 2, 0.4) for i in range(60)]
    good = figures.deaths(every_half, [Death(10.0, 20.0)], 2)
    assert verdict(good, "without an answer")["reached"]
    gone = [one for one in every_half if not 10 < one.began < 15]
    assert not verdict(figures.deaths(gone, [Death(10.0, 20.0)], 2), "without an answer")["reached"]
    assert not [one for one in figures.deaths(gone, [Death(10.0, 20.0)], 1)["verdicts"] if "without" in one["says"]]
