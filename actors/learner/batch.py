"""Groups of episodes to micro-batches: advantages and behaviour log-probs beside every trained token.

Always true: a sequence is cut only at a segment's border, so an image leaves with its placeholder; whatever is not
trained on is counted in the report with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.agent.trajectory import Segment, Trajectory
from actors.learner.advantage import Filtered, trajectory_advantages
from actors.model.batch import TokenBatch, collate, micro_batches
from actors.model.expansion import Expanded, ExpansionError, expand
from actors.model.pixels import Pixels


@dataclass(frozen=True, eq=False)
class TrainSequence:
    """One episode ready to be trained on."""

    expanded: Expanded
    advantage: float


@dataclass(frozen=True)
class BatchReport:
    """What became of a batch's groups and episodes."""

    groups: int
    filtered: dict[str, int]  # groups, by reason
    sequences: int  # episodes trained on
    masked: int  # episodes of trained groups left out: infrastructure failures, unscored, empty
    cut: int  # trained, but shortened to fit
    too_long: int  # left out: nothing trainable fits
    malformed: int  # left out: placeholders and images did not match
    nonfinite: int  # tokens left out for their behaviour log-prob
    tokens: int  # trained
    staleness_mean: float  # of trained tokens, in versions
    staleness_max: int

    def metrics(self) -> dict[str, float]:
        """As numbers for a tracker."""
        plain = {
            name: float(getattr(self, name))
            for name in (
                "groups", "sequences", "masked", "cut", "too_long", "malformed", "nonfinite", "staleness_mean",
                "staleness_max",
            )
        }  # fmt: skip
        return {f"batch_{k}": v for k, v in plain.items()} | {
            f"batch_filtered_{reason}": float(n) for reason, n in self.filtered.items()
        }


def train_sequences(
    groups: Iterable[Sequence[Trajectory]],
    *,
    advantage: str,
    image_token_id: int,
    max_length: int,
    version: int,
) -> tuple[list[TrainSequence], BatchReport]:
    """Sequences of all groups that teach something. `version` is that of the learner's weights."""
    sequences: list[TrainSequence] = []
    count: Counter[str] = Counter()
    filtered = {reason.value: 0 for reason in Filtered if reason is not Filtered.NO}
    for group in groups:
        count["groups"] += 1
        advantages = trajectory_advantages(group, advantage)
        if advantages.filtered is not Filtered.NO:
            filtered[advantages.filtered.value] += 1
            continue
        for trajectory, value, used in zip(group, advantages.values, advantages.used, strict=True):
            if not used:
                count["masked"] += 1
                continue
            expanded = _prepare(trajectory, image_token_id, max_length, count)
            if expanded is not None:
                sequences.append(TrainSequence(expanded, float(value)))
    ages = [version - s.expanded.versions[s.expanded.loss_mask] for s in sequences]
    age = np.concatenate(ages) if ages else np.zeros(0, dtype=np.int32)
    report = BatchReport(
        groups=count["groups"],
        filtered=filtered,
        sequences=len(sequences),
        masked=count["masked"],
        cut=count["cut"],
        too_long=count["too_long"],
        malformed=count["malformed"],
        nonfinite=count["nonfinite"],
        tokens=len(age),
        staleness_mean=float(age.mean()) if len(age) else 0.0,
        staleness_max=int(age.max()) if len(age) else 0,
    )
    return sequences, report


def _prepare(trajectory: Trajectory, image_token_id: int, max_length: int, count: Counter[str]) -> Expanded | None:
    kept = cut_segments(trajectory.segments, max_length)
    if not kept:
        count["too_long"] += 1
        return None
    count["cut"] += sum(s.trained for s in kept) < sum(s.trained for s in trajectory.segments)
    try:
        expanded = expand(kept, image_token_id)
    except ExpansionError:
        count["malformed"] += 1
        return None
    bad = expanded.loss_mask & ~np.isfinite(expanded.logprobs)
    if bad.any():
        count["nonfinite"] += int(bad.sum())
        logprobs = np.where(bad, np.float32(0), expanded.logprobs)
        expanded = replace(expanded, loss_mask=expanded.loss_mask & ~bad, logprobs=logprobs)
    return expanded if expanded.loss_mask.any() else None


def cut_segments(segments: Sequence[Segment], max_length: int) -> tuple[Segment, ...]:
    """The longest prefix of whole segments that fits and ends with an action; empty when none does.

    What follows the last action has no target to predict, so it is left out even where it fits.
    """
    total = 0
    end = 0
    for i, segment in enumerate(segments):
        total += segment.expanded_length
        if total > max_length:
            break
        if segment.trained and len(segment.token_ids):
            end = i + 1
    return tuple(segments[:end])


def share(sequences: Sequence[TrainSequence], rank: int, world: int) -> list[TrainSequence]:
    """The part of rank `rank`: lengths dealt out like cards, so that ranks get about the same work."""
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].expanded), i))
    return [sequences[i] for i in order[rank::world]]


def split_steps(sequences: Sequence[TrainSequence], steps: int, world: int) -> list[list[TrainSequence]]:
    """One part for each optimizer step; fewer steps when some rank would have nothing to do in one."""
    steps = min(steps, len(sequences) // world)
    return [list(sequences[i::steps]) for i in range(steps)]


def to_micro_batches(
    sequences: Sequence[TrainSequence], pixels: Pixels, pad_id: int, token_budget: int
) -> list[TokenBatch]:
    """Padded batches with the extras `behaviour` and `advantages`."""
    lengths = [len(s.expanded) for s in sequences]
    batches = []
    for members in micro_batches(lengths, token_budget):
        chosen = [sequences[i] for i in members]
        extras = {
            "behaviour": [s.expanded.logprobs for s in chosen],
            "advantages": [np.full(len(s.expanded), s.advantage, dtype=np.float32) for s in chosen],
        }
        batches.append(collate([s.expanded for s in chosen], pixels, pad_id, extras))
    return batches
