"""What runs of the bench come down to, and how they are held against each other."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cluster.errors import UserError
from workflows.bench.async_form import ARMS, FULL, TRACES, AsyncForm, ToolTrace
from workflows.bench.async_numbers import RunNumbers, Used, idle_shares, lower_bound_s, numbers, phases, steady
from workflows.bench.async_processors import ProcessorWatch, uncontended
from workflows.bench.async_processors import Used as UsedSoFar
from workflows.bench.async_report import Report, Setting
from workflows.bench.async_runs import numbers_from
from workflows.bench.async_tables import show
from workflows.bench.asynchrony import document_of

SYNC, ASYNC_2 = ARMS[1], ARMS[3]
SEARCHED = {"calls": 30, "requests": 12, "waited_s": 6.0}


def line(step: int, seconds: float, reward: float = 0.5, **more: float) -> dict[str, float]:
    return {"step": step, "time/step_s": seconds, "sampled/reward/mean": reward, **more}


def a_run(trace: str, arm: str, steady_s: float, seed: int = 0, **more: object) -> RunNumbers:
    base = RunNumbers(
        trace=trace, arm=arm, seed=seed, step_s=(steady_s,) * 4, reward=(0.5,) * 4, idle={}, staleness={0: 1.0},
        sampled=100, wasted=0, masked=0, searches=30, sent=12, quota_wait_s=0.0, requests={},
    )  # fmt: skip
    return replace(base, **more)  # pyright: ignore[reportArgumentType]


def answers(right: int, of: int) -> dict[str, float]:
    """The first `right` ones are."""
    return {f"q{i:04d}": float(i < right) for i in range(of)}


def a_report(*runs: RunNumbers) -> Report:
    return Report(Setting("runs/x/sft/export", TRACES, 16, 8, 2), runs)


# --- one run ----------------------------------------------------------------------------------------------------------


def test_steady_steps_leave_out_the_warm_up_and_those_beside_which_nothing_is_sampled():
    assert list(steady(10, 0)) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert list(steady(10, 4)) == [2, 3, 4, 5]
    assert list(steady(5, 4)) == [2, 3, 4]
    assert list(steady(2, 0)) == [0, 1]


@given(st.integers(1, 60), st.integers(0, 8))
def test_there_is_always_a_steady_step_within_the_run(steps: int, staleness: int):
    found = steady(steps, staleness)
    assert len(found) >= 1
    assert found[0] >= 0
    assert found[-1] < steps


def test_a_steady_step_is_told_as_mean_and_median_and_the_whole_run_as_a_sum():
    lines = [line(i + 1, seconds) for i, seconds in enumerate([90.0, 30.0, 3.0, 5.0, 4.0, 52.0, 1.0, 1.0])]
    found = numbers("log-normal", ASYNC_2, 0, lines, {}, SEARCHED, {})
    assert (found.mean_s, found.median_s, found.wall_s) == (16.0, 4.5, 186.0)


def test_a_step_during_which_the_infrastructure_failed_episodes_is_not_steady():
    failed = {"since_last_step/episodes/failed_attempts": 57.0}
    lines = [line(1, 9.0), line(2, 9.0), line(3, 4.0), line(4, 200.0, **failed), line(5, 6.0)]
    found = numbers("log-normal", SYNC, 0, lines, {}, SEARCHED, {})
    assert (found.mean_s, found.wall_s, found.spoilt) == (5.0, 228.0, (3,))
    assert replace(found, spoilt=(2, 3, 4)).mean_s == 70.0  # better all of them than none


def test_an_evaluation_is_no_step():
    lines = [line(1, 2.0), {"step": 1, "eval/exact_match": 0.25}, line(2, 2.0)]
    found = numbers("quota", SYNC, 3, lines, {0: 30, 2: 10}, SEARCHED, {"text": 9})
    assert (len(found.step_s), found.seed) == (2, 3)
    assert found.staleness == {0: 0.75, 2: 0.25}
    assert (found.searches, found.sent, found.quota_wait_s, found.requests) == (30, 12, 6.0, {"text": 9})


def test_exact_match_is_the_share_of_right_answers_if_any_question_was_asked():
    assert a_run("quota", "sync", 1.0, answers=answers(3, of=4)).exact_match == 0.75
    assert a_run("quota", "sync", 1.0).exact_match is None


def test_what_the_controller_uses_is_told_as_a_share_of_a_step():
    assert a_run("quota", "sync", 4.0, used=Used(1.0, 2.0, 0.1)).controller_share == pytest.approx(0.025)
    assert a_run("quota", "sync", 4.0).controller_share is None


def test_tokens_that_were_never_trained_on_are_summed_over_the_steps():
    more = {
        "since_last_step/tokens/sampled": 100.0,
        "tokens/never_trained_on": 7.0,
        "since_last_step/episodes/masked": 1.0,
    }
    found = numbers("quota", SYNC, 0, [line(1, 1.0, **more), line(2, 1.0, **more)], {}, SEARCHED, {})
    assert (found.sampled, found.wasted, found.masked) == (200, 14, 2)


def test_a_run_without_a_step_has_no_numbers():
    with pytest.raises(ValueError, match="without a step"):
        numbers("quota", SYNC, 0, [{"step": 0, "eval/exact_match": 0.5}], {}, SEARCHED, {})


def test_a_reward_is_reached_when_three_steps_in_a_row_have_it_on_average():
    found = a_run("quota", "sync", 2.0, step_s=(2.0,) * 5, reward=(0.9, 0.1, 0.3, 0.8, 1.0))
    assert found.reward_after_s(0.42) == 6.0
    assert found.reward_after_s(0.65) == 10.0
    assert found.reward_after_s(0.8) is None


def test_a_step_for_which_nothing_was_finished_has_the_reward_of_the_one_before():
    lines = [line(1, 1.0, 0.5), {"step": 2, "time/step_s": 1.0}, line(3, 1.0, 0.75)]
    assert numbers("quota", ASYNC_2, 0, lines, {}, SEARCHED, {}).reward == (0.5, 0.5, 0.75)


def test_idle_time_is_told_as_a_share_of_the_wall_clock_by_role_and_cause():
    lines = [
        line(1, 6.0, **{"idle/learner_tool_wait_s": 3.0, "idle/learner_busy_share": 0.5}),
        line(2, 4.0, **{"idle/learner_tool_wait_s": 1.0, "idle/sampler_no_slot_s": 2.0}),
    ]
    assert idle_shares(lines) == {"learner/tool_wait": 0.4, "sampler/no_slot": 0.2}
    assert idle_shares([]) == {}


def test_the_numbers_of_a_run_survive_json():
    import json

    found = a_run(
        "quota", "sync", 2.0, used=Used(1.5, 3.0, 0.25), staleness={0: 0.5, 1: 0.5}, requests={"text": 4}, spoilt=(1,),
        answers=answers(1, of=2),
    )  # fmt: skip
    assert numbers_from(json.loads(json.dumps(asdict(found)))) == found
    assert numbers_from(json.loads(json.dumps(asdict(replace(found, used=None))))).used is None


# --- what a step costs ------------------------------------------------------------------------------------------------


def test_where_sampling_and_training_alternate_each_is_told_from_the_steps_lines():
    steps = [
        {**line(i + 1, 10.0), "time": 100.0 + 10 * i, "publish_lag_s": 1.0, "idle/learner_busy_share": 0.4}
        for i in range(4)
    ]
    assert phases(steps) == [(110.0, 115.0, 119.0), (120.0, 125.0, 129.0)]


def test_a_run_of_two_steps_has_its_second_one_measured():
    steps = [
        {**line(i + 1, 10.0), "time": 10.0 * i, "publish_lag_s": 1.0, "idle/learner_busy_share": 0.4} for i in (0, 1)
    ]
    assert len(phases(steps)) == 1


def test_what_samplers_use_while_the_learner_trains_is_no_sampling():
    # the learner works from 5 to 9 at full speed; the sampler samples from 0 to 5 and spins until 7
    # and the controller uses a tenth of a core all the time
    samples = [UsedSoFar(t / 10, max(0.0, min(t, 90) - 50) / 10, min(t, 70) / 10, t / 100) for t in range(101)]
    learner, sampler, controller = uncontended(samples, [(0.0, 5.0, 9.0)])
    assert learner == pytest.approx(4.0)
    assert sampler == pytest.approx(5.0)
    assert controller == pytest.approx(0.9)


def test_times_after_the_last_look_count_to_the_last_look():
    samples = [UsedSoFar(0.0, 0.0, 0.0, 0.0), UsedSoFar(1.0, 1.0, 2.0, 0.5)]
    assert uncontended(samples, [(0.0, 5.0, 9.0)]) == (1.0, 2.0, 0.5)


def test_the_watch_sees_what_this_process_uses():
    with ProcessorWatch() as watch:
        until = time.process_time() + 0.4
        while time.process_time() < until:
            pass
    used = [sample.controller for sample in watch.samples]
    assert used == sorted(used)
    assert 0.0 < used[-1] - used[0] <= 0.5


def test_a_step_takes_at_least_its_work_on_all_cores_and_its_calls_by_the_quota():
    used = Used(learner=2.0, sampler=4.0, controller=9.0)
    assert lower_bound_s(used, 2, {}, 0.0) == 3.0
    assert lower_bound_s(used, 2, {"text": 20, "image": 45}, 10.0) == 4.5
    assert lower_bound_s(used, 2, {"text": 20, "image": 25}, 10.0) == 3.0
    assert lower_bound_s(used, 2, {"text": 2000}, 0.0) == 3.0


# --- runs against each other ------------------------------------------------------------------------------------------


def test_runs_are_compared_within_a_trace_and_a_seed_alone():
    report = a_report(
        a_run("log-normal", "rounds", 12.0, 0), a_run("log-normal", "async-2", 4.0, 0),
        a_run("log-normal", "rounds", 10.0, 1), a_run("log-normal", "async-2", 2.0, 1),
        a_run("log-normal", "rounds", 99.0, 2), a_run("near-zero", "async-2", 1.0, 2),
    )  # fmt: skip
    found = report.speedup("log-normal", "async-2", "rounds")
    assert found is not None
    assert (found.median, found.low, found.high, found.n) == (4.0, 3.0, 5.0, 2)
    assert report.speedup("near-zero", "async-2", "rounds") is None


def test_the_lower_bound_is_of_the_same_seeds_uncontended_run_and_of_the_runs_own_calls():
    calls = {"text": int(6.0 * 4 * TRACES[-1].per_second)}  # of four steps
    report = a_report(
        a_run("near-zero", "sync", 5.0, 0, used=Used(2.0, 4.0, 0.5)),
        a_run("quota", "async-2", 9.0, 0, requests=calls),
        a_run("quota", "async-2", 9.0, 1, requests=calls),
    )
    assert report.bound_s(report.of("quota")[0]) == 6.0
    assert report.bound_s(report.of("quota")[1]) is None
    over = report.over_bound("quota", "async-2")
    assert over is not None
    assert over.median == 1.5


def test_every_target_that_can_be_told_is_told_and_no_other():
    report = a_report(
        a_run("near-zero", "sync", 5.0, used=Used(2.0, 4.0, 0.5)),
        a_run("near-zero", "async-2", 4.0),
        a_run("log-normal", "rounds", 12.0),
        a_run("log-normal", "sync", 9.0, answers=answers(90, of=100)),
        a_run("log-normal", "async-2", 5.0, answers=answers(85, of=100)),
    )
    told = {finding.says: (round(finding.value, 3), finding.verdict) for finding in report.findings()}
    assert told == {
        "log-normal: async-2 over rounds": (2.4, "missed"),
        "log-normal: async-2 over sync": (1.8, "missed"),
        "near-zero: async-2 over sync": (1.25, "reached"),
        "near-zero: async-2 over the lower bound": (1.333, "reached"),
        "log-normal: async-2 over the lower bound": (1.667, "missed"),
        "log-normal: points of exact match that async-2 is below sync": (5.0, "not told apart"),
    }


def moved(right: int, of: int, by: int) -> dict[str, float]:
    """As many right ones, but others: each of `by` on either side has changed."""
    return {f"q{i:04d}": float(by <= i < right + by) for i in range(of)}


@pytest.mark.parametrize(
    ("of", "seeds", "right", "by", "verdict"),
    [
        (60, 3, 48, 3, "not told apart"),  # six of sixty differ, three either way: the two points are within the noise
        (500, 3, 400, 15, "reached"),
        (500, 3, 340, 0, "missed"),
        (500, 1, 390, 15, "not told apart"),
    ],
)
def test_exact_match_is_held_against_its_target_question_by_question_with_its_interval(of, seeds, right, by, verdict):
    runs = [
        a_run("log-normal", arm, 1.0, seed, answers=found)
        for seed in range(seeds)
        for arm, found in (("sync", answers(of * 4 // 5, of)), ("async-2", moved(right, of, by)))
    ]
    (found,) = [one for one in a_report(*runs).findings() if "exact match" in one.says]
    assert found.value == pytest.approx(100 * (of * 4 // 5 - right) / of)
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.verdict == verdict


def test_only_questions_that_both_arms_answered_are_compared():
    report = a_report(
        a_run("log-normal", "sync", 1.0, 0, answers={"a": 1.0, "b": 1.0, "c": 0.0}),
        a_run("log-normal", "async-2", 1.0, 0, answers={"b": 0.0, "c": 0.0, "d": 1.0}),
        a_run("log-normal", "sync", 1.0, 1),
        a_run("log-normal", "async-2", 1.0, 1, answers={"b": 0.0}),
        a_run("log-normal", "async-2", 1.0, 2, answers={"b": 0.0}),
    )
    assert report.lost("log-normal", "async-2", "sync") == [[100.0, 0.0]]


def test_a_person_reads_the_start_that_latency_is_injected_and_every_arm(capsys):
    report = a_report(
        a_run("near-zero", "sync", 5.0, used=Used(2.0, 4.0, 0.5)),
        a_run("log-normal", "rounds", 12.0, idle={"learner/tool_wait": 0.5}),
        a_run("log-normal", "sync", 8.0, answers=answers(1, of=1)),
        a_run("log-normal", "async-2", 4.0, wasted=5, spoilt=(1,), staleness={0: 0.5, 1: 0.25, 2: 0.25},
              answers=answers(1, of=1)),
    )  # fmt: skip
    report = Report(replace(report.setting, traces=TRACES[:2]), report.runs)
    show(report, AsyncForm(), Console(width=200))
    said = capsys.readouterr().out
    assert "Every run starts from the checkpoint runs/x/sft/export." in said
    assert "latency is injected" in said
    assert "log-normal, median 0.4 s, p99 3 s" in said
    for cell in ("| async-2 |", "3.00", "5.0%", "learner: tool wait", "2 versions old", "2.00 CPU s of the learner"):
        assert cell in said
    assert "log-normal, async-2, seed 0: the infrastructure failed episodes in steps 2, which are left out" in said
    assert "async-2 over rounds: 3.00, to be at least 3: reached" in said
    assert "below sync: 0.00 (95 % from 0.00 to 0.00), to be at most 3: reached" in said
    assert "0.50 CPU s of the controller, Ray's client included: 10.0% of the step's time" in said


def test_what_is_written_down_has_exact_match_and_verdicts_but_not_every_answer():
    report = a_report(
        a_run("log-normal", "sync", 8.0, answers=answers(3, of=4)),
        a_run("log-normal", "async-2", 4.0, answers=answers(3, of=4)),
    )
    document = document_of(report, AsyncForm())
    first = document["runs"][0]
    assert (first["exact_match"], first["asked"], first["controller_share"]) == (0.75, 4, None)
    assert "answers" not in first
    assert [(one["verdict"], one["interval"]) for one in document["findings"]] == [
        ("reached", None),
        ("reached", (0, 0)),
    ]


# --- what is run ------------------------------------------------------------------------------------------------------


def test_the_quick_form_runs_what_the_targets_need_and_the_full_one_everything():
    quick = [(trace.name, arm.name) for trace, arm in AsyncForm().pairs()]
    assert ("near-zero", "sync") in quick
    assert {arm for trace, arm in quick if trace == "log-normal"} == {arm.name for arm in ARMS}
    assert len(quick) == 9
    assert len(FULL.pairs()) == len(ARMS) * len(TRACES)
    assert AsyncForm.asked(True, None, None, (), (), 0.5, False) == replace(FULL, reward=0.5)
    assert AsyncForm.asked(True, 20, 2, (), (), 0.75, True) == replace(FULL, steps=20, seeds=2, refill=True)


def test_arms_and_traces_can_be_chosen_and_what_there_is_not_is_refused():
    chosen = AsyncForm(arms=("async-4", "sync"), traces=("quota",))
    assert [(trace.name, arm.name) for trace, arm in chosen.pairs()] == [("quota", "sync"), ("quota", "async-4")]
    with pytest.raises(UserError, match="--arm is 'b' and must be one of rounds, sync"):
        AsyncForm(arms=("b",)).check()
    with pytest.raises(UserError, match="--trace is 'slow'"):
        AsyncForm(traces=("slow",)).check()


def test_a_trace_says_what_it_is():
    assert ToolTrace("x").says == "none injected"
    assert ToolTrace("x", 0.4, 3.0, 10.0).says == "log-normal, median 0.4 s, p99 3 s; 10 requests/s per endpoint"


def test_only_the_arm_in_rounds_has_the_barrier_and_staleness_tells_the_others_apart():
    assert [arm.name for arm in ARMS if arm.rounds] == ["rounds"]
    assert [arm.max_staleness for arm in ARMS] == [0, 0, 1, 2, 4]
