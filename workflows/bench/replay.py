"""Turns as they were played, and the requests that ask an engine for the same work again. Pure.

A turn's request is its exact prompt (unexpanded ids and pictures) and the number of tokens that it sampled. Requests
depend on nothing: in a replay the second turn of an episode need not wait for the first one, nor for a tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.agent.trajectory import ImageRef, IntArray, Segment


@dataclass(frozen=True, eq=False)
class Turn:
    """One call of the engine. Times are seconds of time.monotonic, which all processes of a machine share."""

    asked_at: float
    answered_at: float
    prompt: tuple[Segment, ...]
    sampled: int  # tokens


@dataclass(frozen=True, eq=False)
class Request:
    """What an engine is asked: prompt_token_ids int32[n], one placeholder per image."""

    prompt_token_ids: IntArray
    images: tuple[ImageRef, ...]
    prompt_tokens: int  # expanded
    sampled: int


def requests_of(turns: Iterable[Turn]) -> list[Request]:
    """In the order in which the turns were asked; a turn that sampled nothing never reached the engine."""
    return [_request(turn) for turn in sorted(turns, key=lambda turn: turn.asked_at) if turn.sampled]


def _request(turn: Turn) -> Request:
    placed = [one.ref for segment in turn.prompt for one in sorted(segment.images, key=lambda it: it.offset)]
    return Request(
        np.concatenate([segment.token_ids for segment in turn.prompt]).astype(np.int32),
        tuple(placed),
        sum(segment.expanded_length for segment in turn.prompt),
        turn.sampled,
    )


def pictures_of(requests: Sequence[Request]) -> list[ImageRef]:
    """Every picture once, in order of appearance."""
    return list(dict.fromkeys(ref for request in requests for ref in request.images))
