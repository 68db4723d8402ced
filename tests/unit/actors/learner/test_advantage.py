"""Group-relative advantages: hand-worked values, and what is left out of a baseline."""

from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import (
    Ending,
    Failure,
    RewardParts,
    Segment,
    SegmentKind,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from actors.learner.advantage import Filtered, group_advantages, trajectory_advantages


def episode(reward: float | None, failure: Failure = Failure.NONE, sampled: int = 2) -> Trajectory:
    segments = [Segment(SegmentKind.PROMPT, np.array([1, 2], np.int32))]
    if sampled:
        span = VersionSpan(WeightVersion(0), 0, sampled)
        ids, logs = np.full(sampled, 3, np.int32), np.full(sampled, -1.0, np.float32)
        segments.append(Segment(SegmentKind.ACTION, ids, logs, (span,)))
    parts = None if reward is None else RewardParts(reward, reward, 1.0, 1.0, 0)
    return Trajectory("q", 0, tuple(segments), (), Ending.ANSWERED, failure, reward=parts)


def everyone(n: int) -> np.ndarray:
    return np.ones(n, dtype=bool)


def test_mean_std_by_hand():
    got = group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), everyone(4), "mean_std")
    assert got.values == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-4)  # mean 0.25, sample std 0.5


def test_mean_by_hand():
    got = group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), everyone(4), "mean")
    assert got.values == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_leave_one_out_by_hand():
    got = group_advantages(np.array([1.0, 0.5, 0.0]), everyone(3), "leave_one_out")
    assert got.values == pytest.approx([0.75, 0.0, -0.75])


def test_a_group_of_equal_rewards_is_filtered():
    got = group_advantages(np.full(4, 0.91), everyone(4), "mean_std")
    assert got.filtered is Filtered.ZERO_VARIANCE
    assert not got.used.any()
    assert not got.values.any()


@pytest.mark.parametrize("kind", ["mean_std", "mean", "leave_one_out"])
def test_a_flat_group_that_is_kept_has_no_advantage_at_all(kind):
    nearly = np.array([0.91, 0.91 + 5e-7, 0.91, 3.0])
    got = group_advantages(nearly, np.array([True, True, True, False]), kind, keep_flat=True)
    assert got.filtered is Filtered.NO
    assert got.used.tolist() == [True, True, True, False]
    assert got.values.tolist() == [0.0] * 4  # over a deviation of nearly nothing these would be large
    alone = trajectory_advantages([episode(1.0), episode(1.0, Failure.INFRA)], kind, keep_flat=True)
    assert alone.filtered is Filtered.TOO_FEW


def test_an_infrastructure_failure_leaves_its_siblings_baseline_alone():
    group = [episode(1.0), episode(0.0), episode(0.0, Failure.INFRA)]
    got = trajectory_advantages(group, "mean")
    assert got.values == pytest.approx([0.5, -0.5, 0.0])
    assert got.used.tolist() == [True, True, False]


@pytest.mark.parametrize("broken", [episode(None), episode(0.0, sampled=0)])
def test_unscored_and_empty_episodes_are_left_out(broken):
    got = trajectory_advantages([episode(1.0), broken, episode(0.0)], "leave_one_out")
    assert got.used.tolist() == [True, False, True]
    assert got.values == pytest.approx([1.0, 0.0, -1.0])


def test_a_policy_failure_is_scored_like_any_other():
    got = trajectory_advantages([episode(1.0), episode(0.0, Failure.POLICY)], "mean")
    assert got.values == pytest.approx([0.5, -0.5])


def test_a_data_failure_drops_the_group():
    got = trajectory_advantages([episode(1.0), episode(0.0), episode(0.0, Failure.DATA)], "mean")
    assert got.filtered is Filtered.DATA


def test_one_usable_episode_has_no_baseline():
    got = trajectory_advantages([episode(1.0), episode(0.0, Failure.INFRA)], "mean")
    assert got.filtered is Filtered.TOO_FEW


def test_a_reward_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="nan"):
        group_advantages(np.array([1.0, float("nan")]), everyone(2), "mean")
    with pytest.raises(ValueError, match="accepted"):
        group_advantages(np.array([1.0, 0.0]), everyone(2), "median")


@given(
    rewards=st.lists(st.floats(-10, 10), min_size=2, max_size=12),
    data=st.data(),
    kind=st.sampled_from(["mean_std", "mean", "leave_one_out"]),
)
def test_advantages_of_a_group_add_up_to_nothing_and_keep_the_order(rewards, data, kind):
    used = np.array(data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards))))
    values = np.array(rewards)
    got = group_advantages(values, used, kind)
    assert not got.values[~used].any()
    if got.filtered is Filtered.NO:
        assert got.values.sum() == pytest.approx(0, abs=1e-3)
        order = np.argsort(values[used], kind="stable")
        assert (np.diff(got.values[used][order]) >= -1e-5).all()


@given(rewards=st.lists(st.floats(-2, 2), min_size=2, max_size=8), unused=st.integers(0, 3))
def test_advantages_are_those_of_a_slow_reference(rewards, unused):
    """In Python floats, each episode for itself; what is not used has no say."""
    hypothesis.assume(max(rewards) - min(rewards) > 1e-3)
    values = np.array([*rewards, *[100.0] * unused])
    used = np.array([True] * len(rewards) + [False] * unused)
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    slow = {
        "mean": [r - mean for r in rewards],
        "mean_std": [(r - mean) / (std + 1e-6) for r in rewards],
        "leave_one_out": [
            r - sum(other for j, other in enumerate(rewards) if j != i) / (len(rewards) - 1)
            for i, r in enumerate(rewards)
        ],
    }
    for kind, expected in slow.items():
        got = group_advantages(values, used, kind).values
        assert got.tolist() == pytest.approx([*expected, *[0.0] * unused], rel=1e-5, abs=1e-6)
