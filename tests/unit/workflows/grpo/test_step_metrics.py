"""What a step says of its groups."""

from dataclasses import replace

import pytest

from actors.agent.trajectory import Ending, Failure, Question, Summary
from actors.search.load import EndpointLoad, LoadSample
from workflows.grpo.ports import GroupResult
from workflows.grpo.step_metrics import Stopwatch, at_quota, learner_waits_for, sampler_waits_for, step_metrics


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


def test_tokens_that_were_trained_on_are_counted_by_their_age():
    young = replace(summary(1.0, 0.0), extra={"tokens_by_version": {3: 7, 5: 3}})
    old = replace(summary(0.0, 0.0), oldest_version=4)
    metrics = step_metrics([group(young), group(old)], 5)
    ages = {key: value for key, value in metrics.items() if key.startswith("staleness/tokens_")}
    assert ages == {"staleness/tokens_0": 3.0, "staleness/tokens_1": 10.0, "staleness/tokens_2": 7.0}
    assert sum(ages.values()) == metrics["tokens/trained"]
    assert metrics["staleness/mean_tokens"] == pytest.approx((10 + 14) / 20)
    assert metrics["staleness/max"] == 2.0


def test_waiting_for_tools_and_waiting_for_their_quotas_are_two_causes():
    assert learner_waits_for(100, 60, 0.2, 128) == "tool_wait"
    assert learner_waits_for(100, 60, 0.8, 128) == "quota_wait"
    assert learner_waits_for(100, 40, 0.8, 128) == "batch_starvation"
    assert sampler_waits_for(10, 10, 0.8, 64, updating=False) == "quota_wait"
    assert sampler_waits_for(10, 10, 0.2, 64, updating=False) == "tool_wait"
    assert sampler_waits_for(40, 30, 0.8, 64, updating=False) == ""
    assert sampler_waits_for(10, 10, 0.8, 64, updating=True) == "publish"


def test_who_is_gone_is_counted_until_then_and_no_more():
    watch = Stopwatch()
    watch.mark("sampler:a", "", 0.0)
    watch.mark("sampler:b", "fenced", 0.0)
    watch.forget("sampler:a", 3.0)
    watch.forget("sampler:c", 3.0)
    assert watch.lap(5.0) == {"sampler:a": {"busy": 3.0}, "sampler:b": {"fenced": 5.0}}
    assert watch.lap(6.0) == {"sampler:b": {"fenced": 1.0}}


def test_a_quota_is_what_tools_wait_for_when_most_requests_have_no_lease():
    fast, limited = EndpointLoad("a", in_provider=3), EndpointLoad("b", in_provider=1, waiting=12)
    assert at_quota(LoadSample((fast, limited), calls=40)) == 12 / 16
    assert at_quota(LoadSample((fast,), calls=40)) == 0.0
    assert at_quota(LoadSample()) == 0.0
