"""Groups of episodes to micro-batches: advantages and behaviour log-probs beside every trained token.

Always true: a sequence is cut only at a segment's border, so an image leaves with its placeholder; whatever is not
trained on is counted in the report with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.agent.trajectory import Ending, Outcome, Segment, Trajectory
from actors.learner.advantage import Filtered, trajectory_advantages
from actors.model.batch import TokenBatch, collate, micro_batches
from actors.model.expansion import Expanded, ExpansionError, expand
from actors.model.pixels import Pixels

WORLD_FAILED = (Outcome.REFUSED, Outcome.INFRA_ERROR)  # the ends of a tool call that are no fault of the policy


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
    over_long: int  # left out as configured: they ran out of tokens
    tool_failed: int  # cut as configured, where a tool failed for no fault of the policy
    nonfinite: int  # tokens left out for their behaviour log-prob
    tokens: int  # trained
    staleness_mean: float  # of trained tokens, in versions
    staleness_max: int

    def metrics(self) -> dict[str, float]:
        """As numbers for a tracker."""
        plain = {
            name: float(getattr(self, name))
            for name in (
                "groups", "sequences", "masked", "cut", "too_long", "malformed", "over_long", "tool_failed",
                "nonfinite", "staleness_mean", "staleness_max",
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
    mask: Sequence[str] = (),
    flat_groups: bool = False,
) -> tuple[list[TrainSequence], BatchReport]:
    """Sequences of all groups that teach something. `version` is that of the learner's weights; `mask` names what is
    left out of the loss, and `flat_groups` are kept or not (as `LearnerSettings` have them)."""
    sequences: list[TrainSequence] = []
    count: Counter[str] = Counter()
    filtered = {reason.value: 0 for reason in Filtered if reason is not Filtered.NO}
    for group in groups:
        count["groups"] += 1
        advantages = trajectory_advantages(group, advantage, keep_flat=flat_groups)
        if advantages.filtered is not Filtered.NO:
            filtered[advantages.filtered.value] += 1
            continue
        for trajectory, value, used in zip(group, advantages.values, advantages.used, strict=True):
            if not used:
                count["masked"] += 1
                continue
            expanded = _prepare(trajectory, image_token_id, max_length, mask, count)
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
        over_long=count["over_long"],
        tool_failed=count["tool_failed"],
        nonfinite=count["nonfinite"],
        tokens=len(age),
        staleness_mean=float(age.mean()) if len(age) else 0.0,
        staleness_max=int(age.max()) if len(age) else 0,
    )
    return sequences, report


def _prepare(
    trajectory: Trajectory, image_token_id: int, max_length: int, mask: Sequence[str], count: Counter[str]
) -> Expanded | None:
    if "over_long" in mask and trajectory.ending is Ending.OUT_OF_TOKENS:
        count["over_long"] += 1
        return None
    segments = before_failure(trajectory) if "fatal_tool" in mask else trajectory.segments
    kept = cut_segments(segments, max_length)
    if not kept:
        count["too_long"] += 1
        return None
    whole, sound, fitting = (sum(s.trained for s in part) for part in (trajectory.segments, segments, kept))
    count["tool_failed"] += sound < whole
    count["cut"] += fitting < sound
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


def before_failure(trajectory: Trajectory) -> tuple[Segment, ...]:
    """The segments up to the first call of a tool that failed for no fault of the policy; all when none did.

    The call itself was still the policy's choice; what it says after the failure answers to the world's fault.
    """
    broken = [call.turn for call in trajectory.tool_calls if call.result.outcome in WORLD_FAILED]
    if not broken:
        return trajectory.segments
    actions = [i for i, segment in enumerate(trajectory.segments) if segment.trained]
    return trajectory.segments[: actions[min(broken) - 1] + 1]


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
    """The part of rank `rank`, so that ranks have equally many sequences, alike in length, and about the same tokens.

    Dealt out like cards, the longest first, each round's longest to the rank that has the fewest tokens: two ranks
    never differ by more tokens than the longest and the shortest of a round. A rank without any is given the shortest
    sequence to take part with, nothing of it trained.
    """
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].expanded), i))
    parts: list[list[int]] = [[] for _ in range(world)]
    tokens = [0] * world
    for start in range(0, len(order), world):
        fewest_first = sorted(range(world), key=lambda one: (tokens[one], one))
        for i, one in zip(order[start : start + world], fewest_first, strict=False):
            parts[one].append(i)
            tokens[one] += len(sequences[i].expanded)
    return [sequences[i] for i in parts[rank]] or [_untrained(sequences[order[-1]])]


def _untrained(sequence: TrainSequence) -> TrainSequence:
    mask = np.zeros_like(sequence.expanded.loss_mask)
    return TrainSequence(replace(sequence.expanded, loss_mask=mask), 0.0)


def split_steps(sequences: Sequence[TrainSequence], steps: int) -> list[list[TrainSequence]]:
    """One part for each optimizer step, fewer steps when there are fewer sequences; the number of ranks has no say."""
    steps = min(steps, len(sequences))
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
