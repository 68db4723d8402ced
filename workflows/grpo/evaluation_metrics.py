"""The numbers of one evaluation during training, and whether it counts. Pure.

It counts for the best version and for the end of training if nearly all of its questions were played: one that lost
many to its deadline is kinder to short episodes than to long ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.agent.trajectory import Failure, Label, Question, Summary
from actors.reward.accuracy import exact_match
from workflows.grpo.evaluation_state import Best
from workflows.grpo.settings import OnlineEvaluationSettings
from workflows.grpo.step_metrics import label_of, tokens_by_version

ENOUGH = 0.9  # share of the questions that must be played for an evaluation to count
Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Played:
    """One question of an evaluation; `summary` is None where the infrastructure or the deadline lost it."""

    question: Question
    summary: Summary | None


def valid(played: Sequence[Played], version: int) -> list[tuple[Question, Summary]]:
    """Those that can be scored: what infrastructure or data spoilt is not wrong, and every token is of `version`."""
    return [
        (p.question, p.summary)
        for p in played
        if p.summary is not None and _scored(p.summary) and _pinned(p.summary, version)
    ]


def evaluation_metrics(played: Sequence[Played], version: int, seconds: float) -> dict[str, float]:
    """`eval/...`; a share of episodes that there are none of is left out."""
    pairs = valid(played, version)
    scored = [p.summary for p in played if p.summary is not None and _scored(p.summary)]
    metrics: dict[str, float] = {
        "version": float(version),
        "episodes": float(len(pairs)),
        "failed": float(len(played) - len(scored)),
        "wrong_version": float(len(scored) - len(pairs)),
        "seconds": seconds,
        "tokens": float(sum(s.sampled_tokens for _, s in pairs)),
    }
    labels: defaultdict[Label, list[float]] = defaultdict(list)
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    for question, summary in pairs:
        labels[label_of(question)].append(float(summary.searches > 0))
        kinds[question.kind or "unknown"].append(_right(question, summary))
    shares = {f"search_ratio_{label.value}": values for label, values in labels.items() if label is not Label.UNKNOWN}
    shares |= {f"kind/{kind}/exact_match": values for kind, values in kinds.items()}
    if pairs:
        shares["exact_match"] = [_right(q, s) for q, s in pairs]
        shares["reward"] = [s.reward for _, s in pairs]
        shares["format"] = [float(s.extra.get("format", 0.0)) for _, s in pairs]
    metrics |= {name: sum(values) / len(values) for name, values in shares.items()}
    return {f"eval/{name}": value for name, value in metrics.items()}


def found(metrics: Mapping[str, float], asked: int, step: int, settings: OnlineEvaluationSettings) -> Best | None:
    """The evaluation as a candidate; None if too few of the `asked` questions were played."""
    episodes = int(metrics["eval/episodes"])
    if episodes < max(1, ENOUGH * asked):
        return None
    value = metrics[f"eval/{settings.metric}"]
    low, high = wilson(value, episodes)
    return Best(step, int(metrics["eval/version"]), settings.metric, value, low, high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share among `n`; wider than need be for means of values between 0 and 1."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _scored(summary: Summary) -> bool:
    return summary.failure not in (Failure.INFRA, Failure.DATA)


def _pinned(summary: Summary, version: int) -> bool:
    return set(tokens_by_version(summary)) <= {version}


def _right(question: Question, summary: Summary) -> float:
    return exact_match(str(summary.extra.get("answer", "")), question.answers)
