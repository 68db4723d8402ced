"""The reward as Ray actors, and the pool of them as one scorer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from actors.agent.prompts import PRESETS
from actors.agent.seams import ScoringFailed
from actors.agent.trajectory import Failure, Question, RewardParts, Trajectory
from actors.reward.own import own_reward, with_own_total
from actors.reward.score import score
from actors.reward.settings import RewardSettings
from cluster.actor_pool import ActorPool, NoActorAnswered


class RewardEvaluator:
    """Scores episodes played under the protocol preset `protocol` (a name of `actors.agent.prompts.PRESETS`)."""

    def __init__(self, settings: RewardSettings, protocol: str) -> None:
        self._rule, self._preset = settings.rule(), PRESETS[protocol]
        self._own = own_reward(self._rule.function) if self._rule.function else None

    async def score(self, question: Question, trajectory: Trajectory) -> RewardParts:
        """Raises ScoringFailed when the episode has no reward."""
        parts = score(question, trajectory, self._rule, self._preset)
        return with_own_total(self._own, question, trajectory, parts) if self._own else parts


def check_reward(settings: RewardSettings) -> None:
    """Raise UserError here, not in an actor far away, for a reward function that cannot be imported."""
    if settings.function:
        own_reward(settings.function)


def start_evaluators(settings: RewardSettings, protocol: str) -> list[Any]:
    """Handles of `settings.evaluators` RewardEvaluator actors. Ray must be running.

    KeyError: no such preset. `UserError`: no such reward function.
    """
    PRESETS[protocol]
    check_reward(settings)
    options = ray.remote(RewardEvaluator).options(
        num_cpus=settings.evaluator_cpus, max_restarts=-1, max_concurrency=1000
    )
    return [options.remote(settings, protocol) for _ in range(settings.evaluators)]


class RemoteScorer:
    """Scores on RewardEvaluator actors. Can be pickled."""

    def __init__(self, handles: Sequence[Any], timeout: float = RewardSettings.timeout) -> None:
        self._pool, self._timeout = ActorPool(handles), timeout

    async def score(self, question: Question, trajectory: Trajectory) -> RewardParts:
        """The reward. Raises ScoringFailed: the episode has none, or no evaluator answered in time (INFRA).

        An evaluator that dies is replaced by the next one.
        """
        try:
            return await self._pool.call(
                lambda evaluator, _: evaluator.score.remote(question, trajectory),
                deadline=time.monotonic() + self._timeout,
            )
        except NoActorAnswered as error:
            raise ScoringFailed(Failure.INFRA, f"no reward evaluator answered: {error}") from error
