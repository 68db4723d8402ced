"""A reward of one's own: a function named by dotted path, that sees the episode and the parts of the papers' reward."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from actors.agent.seams import ScoringFailed
from actors.agent.trajectory import Failure, Question, RewardParts, Trajectory
from cluster.errors import UserError

OwnReward = Callable[[Question, Trajectory, RewardParts], float]


def own_reward(path: str) -> OwnReward:
    """The function at `package.module:function`. Raises `UserError` when the path leads nowhere."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"reward.function {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"reward.function {path!r} is not a function.")
    return cast(OwnReward, found)


def with_own_total(own: OwnReward, question: Question, trajectory: Trajectory, parts: RewardParts) -> RewardParts:
    """The parts with the function's total. Raises ScoringFailed (INFRA: the policy is not to blame) when it fails."""
    try:
        total = float(own(question, trajectory, parts))
    except Exception as error:  # a stranger's code
        raise ScoringFailed(Failure.INFRA, f"reward.function raised {type(error).__name__}: {error}") from error
    if not math.isfinite(total):
        raise ScoringFailed(Failure.INFRA, f"reward.function returned {total}")
    return replace(parts, total=total)
