"""Both papers' reward, as one pure function; and which episodes have none.

An episode that infrastructure or data spoilt is not scored: a 0 would teach the policy that searching is bad.
"""

from __future__ import annotations

from actors.agent.prompts import Preset
from actors.agent.seams import ScoringFailed
from actors.agent.trajectory import Failure, Outcome, Question, RewardParts, Trajectory
from actors.reward.accuracy import MATCHERS
from actors.reward.format import well_formed
from actors.reward.settings import PenaltyPer, RewardRule


def penalty(searches: int, rule: RewardRule) -> float:
    """What accuracy is multiplied by after `searches` searches; 1 after none."""
    times = searches if rule.penalty_per is PenaltyPer.CALL else min(searches, 1)
    return (1.0 - rule.search_penalty) ** times


def combined(accuracy: float, well_formed: bool, searches: int, rule: RewardRule) -> RewardParts:
    """(1 - a) * accuracy * penalty + a * format, and its parts. accuracy: 0..1."""
    kept, form = penalty(searches, rule), float(well_formed)
    total = (1.0 - rule.format_weight) * accuracy * kept + rule.format_weight * form
    return RewardParts(total=total, accuracy=accuracy, format=form, penalty=kept, searches=searches)


def score(question: Question, trajectory: Trajectory, rule: RewardRule, preset: Preset) -> RewardParts:
    """The reward of one episode played under `preset`. Raises ScoringFailed when it has none.

    The policy's failures are scored: no answer is a wrong answer.
    """
    check_scorable(question, trajectory)
    accuracy = MATCHERS[rule.matching](trajectory.answer, question.answers)
    return combined(accuracy, well_formed(trajectory, preset), trajectory.searches, rule)


def check_scorable(question: Question, trajectory: Trajectory) -> None:
    """Raise ScoringFailed for what the policy cannot be held responsible for."""
    if trajectory.failure in (Failure.INFRA, Failure.DATA):
        raise ScoringFailed(trajectory.failure, trajectory.problem or "the episode failed")
    if not any(answer.strip() for answer in question.answers):
        raise ScoringFailed(Failure.DATA, f"question {question.id} has no gold answer")
    for call in trajectory.tool_calls:
        if call.result.outcome in (Outcome.INFRA_ERROR, Outcome.REFUSED):
            what = f"{call.request.tool} in turn {call.turn}: {call.result.outcome}"
            raise ScoringFailed(Failure.INFRA, f"{what}: {call.result.message}")
