"""What an evaluation says, what it does not count, and which questions it asks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure, Label, Question, Summary
from cluster.errors import UserError
from workflows.grpo.evaluation_metrics import Played, evaluation_metrics, found, wilson
from workflows.grpo.evaluation_state import Best, EvaluationState
from workflows.grpo.held_out import hold_out
from workflows.grpo.settings import OnlineEvaluationSettings

TEXT = Question("t", "?", answers=("Oslo",), kind="text", designed_label=Label.REQUIRED)
LOOK = Question("l", "?", answers=("red",), kind="looking", designed_label=Label.FREE)


def played(question, answer="", searches=0, reward=0.0, failure=Failure.NONE, versions=(4,)):
    return Played(
        question,
        Summary(
            question.id, 0, reward, 0.0, Ending.ANSWERED, failure, searches, 5 * len(versions), 50,
            min(versions, default=-1), max(versions, default=-1), 1.0,
            {"tokens_by_version": dict.fromkeys(versions, 5), "answer": answer, "format": 1.0},
        ),
    )  # fmt: skip


def test_every_number_of_an_evaluation():
    episodes = [played(TEXT, "oslo.", 1, 0.9), played(TEXT, "Rome", 0, 0.1), played(LOOK, "Red", 0, 1.0)]
    assert evaluation_metrics(episodes, 4, 2.5) == pytest.approx(
        {
            "eval/version": 4, "eval/episodes": 3, "eval/failed": 0, "eval/wrong_version": 0, "eval/seconds": 2.5,
            "eval/tokens": 15, "eval/search_ratio_required": 0.5, "eval/search_ratio_free": 0.0,
            "eval/kind/text/exact_match": 0.5, "eval/kind/looking/exact_match": 1.0, "eval/exact_match": 2 / 3,
            "eval/reward": 2 / 3, "eval/format": 1.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spoilt", "counted"),
    [
        (Played(TEXT, None), "failed"),
        (played(TEXT, "Oslo", failure=Failure.INFRA), "failed"),
        (played(TEXT, "Oslo", failure=Failure.DATA), "failed"),
        (played(TEXT, "Oslo", versions=(3, 4)), "wrong_version"),
        (played(TEXT, "Oslo", versions=(3,)), "wrong_version"),
    ],
)
def test_what_cannot_be_scored_is_counted_and_never_wrong(spoilt, counted):
    metrics = evaluation_metrics([spoilt, played(LOOK, "red")], 4, 1.0)
    assert (metrics[f"eval/{counted}"], metrics["eval/episodes"], metrics["eval/exact_match"]) == (1, 1, 1.0)


def test_what_the_policy_spoilt_is_wrong():
    metrics = evaluation_metrics([played(TEXT, failure=Failure.POLICY, versions=())], 4, 1.0)
    assert (metrics["eval/episodes"], metrics["eval/exact_match"]) == (1, 0.0)


def test_an_evaluation_that_lost_too_many_does_not_count():
    s = OnlineEvaluationSettings(metric="reward")
    nine = [played(TEXT, reward=0.5)] * 9
    assert found(evaluation_metrics(nine, 4, 1.0), 10, 4, s).value == 0.5
    assert found(evaluation_metrics(nine, 4, 1.0), 11, 4, s) is None
    assert found(evaluation_metrics([], 4, 1.0), 0, 4, s) is None


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_value_and_shrinks_with_questions(n, data):
    share = data.draw(st.integers(0, n)) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1
    wider = wilson(share, 4 * n)
    assert wider[1] - wider[0] < high - low


def test_the_interval_is_wilsons():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def best(step, value):
    return Best(step, step, "exact_match", value, 0.0, 1.0)


def test_of_equals_the_first_is_the_best_and_patience_counts_what_counted():
    state = EvaluationState()
    for step, value in ((0, 0.5), (1, 0.5), (2, None), (3, 0.52), (4, 0.6)):
        state = state.after(step, None if value is None else best(step, value), 0.05)
        assert EvaluationState.from_json(state.to_json()) == state
        if step == 3:
            assert (state.best.step, state.mark, state.since) == (3, 0.5, 2)
    assert state == EvaluationState(4, best(4, 0.6), 0.6, 0)
    assert EvaluationState.from_json(None) == EvaluationState()


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=80), st.integers(0, 40), st.integers(0, 9))
def test_held_out_questions_are_of_each_kind_in_proportion_and_always_the_same(kinds, count, seed):
    questions = {f"q{i}": Question(f"q{i}", "?", kind=kind) for i, kind in enumerate(kinds)}
    if 2 * count > len(questions):
        with pytest.raises(UserError, match=r"grpo.evaluation.questions"):
            hold_out(questions, count, seed)
        return
    learned, held = hold_out(questions, count, seed)
    assert len(held) == count
    assert not learned.keys() & held.keys()
    assert learned.keys() | held.keys() == questions.keys()
    assert hold_out(dict(reversed(questions.items())), count, seed)[1].keys() == held.keys()
    share = Counter(q.kind for q in held.values())
    for kind, n in Counter(kinds).items():
        assert abs(share[kind] - count * n / len(kinds)) < 1
