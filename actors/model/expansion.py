"""Segments to one expanded sequence: the only place where image placeholders grow to their full length.

What the samplers and the trajectories hold is unexpanded (one placeholder an image). The learner needs the ids that the
model really sees, with loss mask, log-probs and weight versions kept in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.agent.trajectory import BoolArray, FloatArray, ImageRef, IntArray, Segment


class ExpansionError(ValueError):
    """Placeholders and images do not match: a sequence that must not reach a model."""


@dataclass(frozen=True, eq=False)
class Expanded:
    """A sequence as the model sees it. All arrays have length n; `images` are in order of appearance.

    token_ids int32, loss_mask bool, logprobs float32 (0 outside actions), versions int32 (-1 outside actions).
    """

    token_ids: IntArray
    loss_mask: BoolArray
    logprobs: FloatArray
    versions: IntArray
    images: tuple[ImageRef, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def expand(segments: Sequence[Segment], image_token_id: int) -> Expanded:
    """Concatenate segments and grow each image placeholder.

    Raise `ExpansionError` when images and placeholders differ, or when there is nothing to expand.
    """
    repeats = [_repeats(segment, image_token_id) for segment in _some(segments)]
    mask: list[BoolArray] = []
    logprobs: list[FloatArray] = []
    versions: list[IntArray] = []
    for segment, grown in zip(segments, repeats, strict=True):
        n = int(grown.sum())
        mask.append(np.full(n, segment.trained))
        if segment.trained:
            logprobs.append(segment.logprobs.astype(np.float32))
            versions.append(_versions(segment))
        else:
            logprobs.append(np.zeros(n, dtype=np.float32))
            versions.append(np.full(n, -1, dtype=np.int32))
    return Expanded(
        np.repeat(_joined(segments), np.concatenate(repeats)),
        np.concatenate(mask),
        np.concatenate(logprobs),
        np.concatenate(versions),
        images_of(segments),
    )


def expanded_ids(segments: Sequence[Segment], image_token_id: int) -> IntArray:
    """`expand(...).token_ids` alone, for who asks on every turn. Raises as `expand`."""
    repeats = [_repeats(segment, image_token_id) for segment in _some(segments)]
    return np.repeat(_joined(segments), np.concatenate(repeats))


def images_of(segments: Sequence[Segment]) -> tuple[ImageRef, ...]:
    """The images of a sequence in order of appearance."""
    return tuple(
        placed.ref for segment in segments for placed in sorted(segment.images, key=lambda placed: placed.offset)
    )


def _some(segments: Sequence[Segment]) -> Sequence[Segment]:
    if not segments:
        raise ExpansionError("there are no segments")
    return segments


def _joined(segments: Sequence[Segment]) -> IntArray:
    return np.concatenate([segment.token_ids for segment in segments]).astype(np.int32)


def _repeats(segment: Segment, image_token_id: int) -> IntArray:
    if segment.trained and segment.images:
        raise ExpansionError("an action cannot contain an image")
    found = np.flatnonzero(segment.token_ids == image_token_id).tolist()
    placed_at = sorted(placed.offset for placed in segment.images)
    if found != placed_at:
        raise ExpansionError(f"placeholders at {found} but images at {placed_at} in a {segment.kind} segment")
    repeats = np.ones(len(segment.token_ids), dtype=np.int32)
    for placed in segment.images:
        if placed.n_tokens < 1:
            raise ExpansionError(f"an image of {placed.n_tokens} tokens in a {segment.kind} segment")
        repeats[placed.offset] = placed.n_tokens
    return repeats


def _versions(segment: Segment) -> IntArray:
    versions = np.full(len(segment.token_ids), -1, dtype=np.int32)
    for span in segment.spans:
        versions[span.start : span.end] = int(span.version)
    return versions
