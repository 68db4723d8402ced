"""Advantages of the episodes of one question, relative to their group. Pure numpy.

An episode that the infrastructure broke, or that was never scored, is *unusable*: it neither gets an
advantage nor enters its siblings' baseline. A group with a data failure or with fewer than two usable
episodes teaches nothing and is filtered, with its reason; so is a flat one, whose usable rewards are all
equal, unless it is to be kept with advantages of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from actors.agent.trajectory import BoolArray, Failure, FloatArray, Trajectory

EPSILON = 1e-6  # added to the standard deviation, as veRL does


class Filtered(StrEnum):
    """Why a group is not trained on."""

    NO = "no"
    DATA = "data"
    TOO_FEW = "too_few"
    ZERO_VARIANCE = "zero_variance"


@dataclass(frozen=True, eq=False)
class GroupAdvantages:
    """values float32[n], 0 where not `used`; `used` bool[n] says which episodes are trained on."""

    values: FloatArray
    used: BoolArray
    filtered: Filtered


def usable(trajectory: Trajectory) -> bool:
    """Whether an episode may be trained on: scored, sampled at all, not broken by infrastructure or data."""
    return (
        trajectory.reward is not None
        and trajectory.failure not in (Failure.INFRA, Failure.DATA)
        and trajectory.sampled_tokens > 0
    )


def trajectory_advantages(trajectories: Sequence[Trajectory], kind: str, *, keep_flat: bool = False) -> GroupAdvantages:
    """Advantages of a group's episodes from their total rewards."""
    used = np.array([usable(t) for t in trajectories], dtype=bool)
    if any(t.failure is Failure.DATA for t in trajectories):
        return _none(used, Filtered.DATA)
    rewards = np.array([t.reward.total if t.reward else 0.0 for t in trajectories], dtype=np.float64)
    return group_advantages(rewards, used, kind, keep_flat=keep_flat)


def group_advantages(rewards: np.ndarray, used: BoolArray, kind: str, *, keep_flat: bool = False) -> GroupAdvantages:
    """rewards float64[n], used bool[n]; `keep_flat`: equal rewards are advantages of 0 and no reason to filter.

    mean_std       (r - mean) / (std + 1e-6), sample standard deviation (GRPO as veRL computes it)
    mean           r - mean (Dr. GRPO)
    leave_one_out  r - mean of the others = n / (n - 1) * (r - mean) (RLOO)
    """
    kept = rewards[used]
    if not np.isfinite(kept).all():
        raise ValueError(f"a usable episode has the reward {kept[~np.isfinite(kept)][0]}")
    if len(kept) < 2:
        return _none(used, Filtered.TOO_FEW)
    if kept.max() - kept.min() <= EPSILON:
        flat = np.zeros(len(rewards), dtype=np.float32)
        return GroupAdvantages(flat, used, Filtered.NO) if keep_flat else _none(used, Filtered.ZERO_VARIANCE)
    centred = kept - kept.mean()
    if kind == "mean_std":
        centred = centred / (kept.std(ddof=1) + EPSILON)
    elif kind == "leave_one_out":
        centred = centred * (len(kept) / (len(kept) - 1))
    elif kind != "mean":
        raise ValueError(f"unknown advantage {kind!r}; accepted: mean_std, mean, leave_one_out")
    values = np.zeros(len(rewards), dtype=np.float32)
    values[used] = centred
    return GroupAdvantages(values, used, Filtered.NO)


def _none(used: BoolArray, reason: Filtered) -> GroupAdvantages:
    return GroupAdvantages(np.zeros(len(used), dtype=np.float32), np.zeros(len(used), dtype=bool), reason)
