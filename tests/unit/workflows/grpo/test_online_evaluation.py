"""Evaluation while training goes on, against coroutines that behave badly, on an event loop whose clock jumps.

The bad world itself asserts, in every one of these runs, that nothing is published while an evaluation is under way,
that held-out questions are played greedily alone and never trained on, and that the weights kept are those published.
"""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workflows.grpo.bad_world import (
    EVALUATED,
    SMALL,
    Luck,
    OneSampler,
    World,
    check_books,
    controller,
    lucks,
    play,
    run_all,
)
from workflows.grpo.ports import BudgetSpent
from workflows.grpo.settings import OnlineEvaluationSettings


def with_evaluation(**settings):
    return replace(SMALL, evaluation=OnlineEvaluationSettings(**{"every": 1, "questions": 10, **settings}))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), lucks, st.integers(0, 2), st.integers(1, 3), st.integers(1, 4))
def test_whatever_goes_wrong_every_evaluation_ends_under_one_version(seed, luck, staleness, samplers, every):
    world = World(seed, luck)
    s = replace(with_evaluation(every=every), max_staleness=staleness, samplers=samplers)
    end, c = run_all(world, s)
    assert end.complete
    assert c.step == c.version == SMALL.steps == len(world.metrics)
    assert max(m["staleness/max"] for m in world.metrics) <= staleness
    asked = [step for step in range(SMALL.steps + 1) if step % every == 0 or step == SMALL.steps]
    assert [m["eval/version"] for m in world.evaluations] == [m["step"] for m in world.evaluations] == asked
    for m in world.evaluations:
        assert m["eval/wrong_version"] == 0
        assert m["eval/episodes"] + m["eval/failed"] == 10
        right = m.get("eval/exact_match", 0.0) * m["eval/episodes"]
        assert right == pytest.approx(round(right))
        assert m["eval/seconds"] <= s.evaluation.timeout_s


qualities = st.lists(st.integers(0, 10), min_size=7, max_size=7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), qualities, st.lists(st.integers(5, 1200), max_size=4), st.integers(1, 3))
def test_a_run_killed_at_any_await_ends_with_the_same_best_step(seed, quality, kills, every):
    world = World(seed, Luck(), quality=quality)
    s = with_evaluation(every=every)
    made = []

    async def main():
        made.append(controller(world, s, resume=True))
        return await made[-1].run()

    for kill_at in kills:
        if play(main, kill_at)[0]:
            break
    end, _ = play(main)
    assert end.complete
    check_books(made[-1])
    steps = sorted({*range(0, s.steps + 1, every), s.steps})
    expected = max(steps, key=lambda step: (quality[step], -step))  # of equals the first
    best = made[-1].evaluation.state.best
    assert (best.step, best.value) == (expected, quality[expected] / 10)
    assert expected in world.kept
    assert best.low <= best.value <= best.high
    assert len(world.lineage) == len(set(world.lineage)) == s.steps * s.groups_per_step


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 60.0), lucks)
def test_a_stopped_run_does_not_wait_for_an_evaluation_and_makes_it_again(seed, after, luck):
    world = World(seed, luck)

    async def main(stops):
        c = controller(world, EVALUATED, resume=True)
        if stops:
            asyncio.get_running_loop().call_later(after, c.stop, "Ctrl-C")
        return await c.run(), c

    stopped, _ = play(lambda: main(True))
    assert stopped is not None
    end, _ = stopped
    remembered = json.loads(world.saved[-1][0])["evaluation"]["evaluated"] if not end.complete else 6
    before = len(world.evaluations)
    continued, _ = play(lambda: main(False))
    assert continued is not None
    end, c = continued
    assert end.complete
    assert c.evaluation.state.evaluated == 6
    assert [m["step"] for m in world.evaluations[before:]] == [v for v in (0, 2, 4, 6) if v > remembered]


def test_a_hang_in_evaluation_is_given_up_and_training_goes_on():
    world = World(0, Luck(), hangs_evaluation=True)
    end, c = run_all(world, with_evaluation(every=3, timeout_s=50.0))
    assert end.complete
    assert [(m["eval/failed"], m["eval/seconds"] >= 50) for m in world.evaluations] == [(10, True)] * 3
    assert all("eval/exact_match" not in m for m in world.evaluations)
    assert c.evaluation.state.best is None
    assert any("are given up" in line for line in world.said)
    assert any("says nothing" in line for line in world.said)
    assert sum(m.get("idle/learner_evaluation_s", 0.0) for m in world.metrics) > 40


def test_without_improvement_the_run_ends_early_and_stays_ended():
    world = World(0, Luck(), quality=[5, 5, 6, 6, 6, 6, 6])
    s = replace(with_evaluation(patience=2, min_delta=0.05), steps=30)
    end, _ = run_all(world, s)
    assert (end.complete, end.stopped) == (True, False)
    assert end.reason == "no improvement of exact_match in 2 evaluations; the best is step 2"
    assert 4 <= end.step <= 6
    again, _ = play(lambda: controller(world, s, resume=True).run())
    assert (again.step, again.reason) == (end.step, end.reason)
    more, _ = play(lambda: controller(world, with_evaluation(), resume=True).run())
    assert more.step == SMALL.steps


def test_small_gains_are_the_best_but_no_improvement():
    world = World(0, Luck(), quality=[5, 6, 7, 8])
    end, c = run_all(world, with_evaluation(patience=2, min_delta=0.25))
    assert end.reason == "no improvement of exact_match in 2 evaluations; the best is step 2"
    assert c.evaluation.state.best.value == 0.7


def test_an_evaluation_is_first_in_the_queue_for_seats():
    world = World(0, Luck())
    run_all(world, replace(EVALUATED, samplers=1, episodes_per_sampler=3))
    held = [question_id in world.held_out for question_id in world.begun]
    rounds = "".join("h" if h else "q" for h in held).split("q")
    assert [len(part) for part in rounds if part] == [10] * 4


def test_a_spent_budget_in_an_evaluation_stops_at_a_checkpoint(monkeypatch):
    real = OneSampler.play

    async def broke(self, question, index):
        if question.id in self.world.held_out and self.version == 2:
            raise BudgetSpent("search: 100 of 100 USD are spent")
        return await real(self, question, index)

    monkeypatch.setattr(OneSampler, "play", broke)
    world = World(0, Luck())
    with pytest.raises(BudgetSpent, match="100 USD"):
        run_all(world, EVALUATED)
    state = json.loads(world.saved[-1][0])
    assert state["step"] >= 2
    assert state["evaluation"]["evaluated"] == 0


def test_tokens_of_another_version_are_dropped_and_counted(monkeypatch):
    real = OneSampler.play

    async def lags(self, question, index):
        summary, payload = await real(self, question, index)
        if question.id in ("h0", "h1"):
            summary.extra["tokens_by_version"] = {self.version - 1: 10}
        return summary, payload

    monkeypatch.setattr(OneSampler, "play", lags)
    world = World(0, Luck(), quality=[10])
    _, c = run_all(world, EVALUATED)
    assert [(m["eval/wrong_version"], m["eval/episodes"]) for m in world.evaluations] == [(2, 8)] * 4
    assert c.evaluation.state.best is None, "eight of ten are too few to go by"


def test_off_means_nothing_is_evaluated_or_held_out():
    world = World(0, Luck())
    end, c = run_all(world, SMALL)
    assert end.complete
    assert not world.evaluations
    assert c.evaluation.state.evaluated == -1


def test_a_question_cannot_be_both():
    world = World(0)
    world.held_out["q1"] = world.questions["q1"]
    with pytest.raises(ValueError, match="'q1' for one"):
        controller(world, EVALUATED)


def test_the_last_checkpoint_knows_what_the_last_evaluation_showed():
    """Also when the run ends with a step after which there was a checkpoint, but whose evaluation ended later."""
    for seed in range(8):
        world = World(seed, Luck(), quality=[5])
        _, c = run_all(world, replace(with_evaluation(patience=1), steps=30, checkpoint_every=1))
        text, _, _ = world.saved[-1]
        assert json.loads(text)["evaluation"] == c.evaluation.state.to_json()
