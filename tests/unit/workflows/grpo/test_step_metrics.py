"""What a step says of its groups."""

import pytest

from actors.agent.trajectory import Ending, Failure, Question, Summary
from workflows.grpo.ports import GroupResult
from workflows.grpo.step_metrics import step_metrics


def summary(accuracy: float, cost_usd: float) -> Summary:
    return Summary(
        question_id="q",
        sample_index=0,
        reward=accuracy,
        accuracy=accuracy,
        ending=Ending.ANSWERED,
        failure=Failure.NONE,
        searches=1,
        sampled_tokens=10,
        expanded_length=20,
        oldest_version=0,
        newest_version=0,
        seconds=1.0,
        extra={"cost_usd": cost_usd},
    )


def group(*summaries: Summary) -> GroupResult:
    question = Question("q", "who?")
    return GroupResult(
        id=1, question=question, admitted_at=0, summaries=summaries, payloads=(None,) * len(summaries), masked=0
    )


def test_what_searches_cost_is_told_for_a_thousand_trajectories_and_for_each_right_answer():
    metrics = step_metrics([group(summary(1.0, 0.002), summary(0.0, 0.004))], 0)
    assert metrics["search/cost_usd_per_1000"] == pytest.approx(3.0)
    assert metrics["search/cost_usd_per_correct"] == pytest.approx(0.006)


def test_without_a_right_answer_there_is_no_price_of_one():
    assert "search/cost_usd_per_correct" not in step_metrics([group(summary(0.0, 0.004))], 0)
