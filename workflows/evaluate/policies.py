"""Policies of the baselines: Generators that let the model write and take its freedom to search.

All keep what the model thinks in a turn and change what it does, so that what is forced stays as close as possible
to what the model was trained on: a baseline is to lose because of what it may not do, not because of how it is made
to. Forced tokens carry log-prob 0; evaluation does not train on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.agent.prompts import GIVE_UP, PRESETS
from actors.agent.protocol import (
    ANSWER,
    IMAGE_SEARCH,
    Action,
    Answer,
    Grammar,
    ImageSearch,
    TextSearch,
    Turn,
    parse_turn,
    render_turn,
)
from actors.agent.seams import Generation, Generator, Sampling
from actors.agent.trajectory import IntArray, Question, Segment, SegmentKind, VersionSpan, WeightVersion
from actors.agent.untrusted import one_line
from actors.model.renderer import ChatRenderer


class Direct:
    """Never searches: when the model's turn is no answer, it is kept up to its thought and made to answer."""

    def __init__(self, model: Generator, renderer: ChatRenderer) -> None:
        self._model, self._renderer = model, renderer

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        free = await self._model.generate(segments, sampling, deadline=deadline)
        if free.stop != "end_of_turn" or self._renderer.forbidden(free.token_ids):
            return free
        if self._answers(free):
            return free
        turn = parse_turn(self._renderer.decode(free.token_ids), Grammar())
        begun = _said(self._renderer.encode(f"<reason>{turn.reason}</reason><{ANSWER}>"), free)
        rest = await _continued(self._model, segments, begun, sampling, deadline)
        if rest is None:
            return _cut(begun, sampling.max_tokens)
        joined = _joined(begun, rest)
        if rest.stop != "end_of_turn" or self._answers(joined):
            return joined
        # it went on to search all the same: what it wrote before the next tag is its answer
        plain = self._renderer.decode(rest.token_ids).partition("<")[0].strip()
        return _said(self._renderer.action(render_turn(turn.reason, Answer(plain or GIVE_UP), Grammar())), joined)

    def _answers(self, turn: Generation) -> bool:
        return isinstance(parse_turn(self._renderer.decode(turn.token_ids), Grammar()).action, Answer)


class Rag:
    """Always searches twice, the whole image and then a text, and then answers.

    The text query is the model's own where it writes one, else the question. Without an image there is one search.
    """

    def __init__(self, model: Generator, renderer: ChatRenderer, question: Question, grammar: Grammar) -> None:
        self._model, self._renderer, self._grammar = model, renderer, grammar
        query = TextSearch(one_line(question.text))
        self._forced: tuple[Action, ...] = (ImageSearch(), query) if question.images else (query,)
        self._answering = Direct(model, renderer)

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        turns = sum(segment.kind is SegmentKind.ACTION for segment in segments)
        if turns >= len(self._forced):
            return await self._answering.generate(segments, sampling, deadline=deadline)
        free = await self._model.generate(segments, sampling, deadline=deadline)
        if free.stop == "aborted":
            return free
        turn = parse_turn(self._renderer.decode(free.token_ids), self._grammar)
        forced = self._forced[turns]
        if isinstance(forced, TextSearch):
            return free if isinstance(turn.action, TextSearch) else self._force(turn.reason, forced, free)
        return await self._look(segments, sampling, deadline, free, turn)

    async def _look(
        self, segments: Sequence[Segment], sampling: Sampling, deadline: float, free: Generation, turn: Turn
    ) -> Generation:
        """The forced image search, in place of what the model said freely."""
        return self._force(turn.reason, ImageSearch(), free)

    def _force(self, reason: str, action: Action, instead_of: Generation) -> Generation:
        # not held to the bound of a sampled turn: the episode's own bound is checked when the result is shown
        return _said(self._renderer.action(render_turn(reason, action, self._grammar)), instead_of)


class RagCrop(Rag):
    """As Rag, but its image search is for a part of the picture, in the model's own words.

    A model that does not ask for a part is made to begin an image search and completes it; where it writes nothing that
    can be searched for, the whole picture is searched.
    """

    async def _look(
        self, segments: Sequence[Segment], sampling: Sampling, deadline: float, free: Generation, turn: Turn
    ) -> Generation:
        if isinstance(turn.action, ImageSearch) and turn.action.expression:
            return free
        begun = _said(self._renderer.encode(f"<reason>{turn.reason}</reason><{IMAGE_SEARCH}>"), free)
        rest = await _continued(self._model, segments, begun, sampling, deadline)
        if rest is None:
            return self._force(turn.reason, ImageSearch(), free)
        if rest.stop == "aborted":
            return _joined(begun, rest)
        joined = _joined(begun, rest)
        action = parse_turn(self._renderer.decode(joined.token_ids), self._grammar).action
        if rest.stop == "end_of_turn" and isinstance(action, ImageSearch) and action.expression:
            return joined
        # what it wrote before the next tag is what it looks for; "" searches the whole
        plain = one_line(self._renderer.decode(rest.token_ids).partition("<")[0])
        return self._force(turn.reason, ImageSearch(plain), joined)


# --- what `RolloutSampler.run` is given by dotted path --------------------------------------------------------


def direct(model: Generator, renderer: ChatRenderer, question: Question) -> Direct:
    """The `PolicyFactory` of Direct."""
    return Direct(model, renderer)


def rag(model: Generator, renderer: ChatRenderer, question: Question) -> Rag:
    """The `PolicyFactory` of Rag."""
    return Rag(model, renderer, question, Grammar())


def rag_crop(model: Generator, renderer: ChatRenderer, question: Question) -> RagCrop:
    """The `PolicyFactory` of RagCrop, for protocols that have crops."""
    return RagCrop(model, renderer, question, Grammar())


def rag_mmsearch_r1(model: Generator, renderer: ChatRenderer, question: Question) -> Rag:
    """The `PolicyFactory` of Rag under MMSearch-R1's protocol, which has a tag of its own for whole images."""
    return Rag(model, renderer, question, PRESETS["mmsearch_r1"].grammar)


# --- turns that were not sampled -------------------------------------------------------------------------------


async def _continued(
    model: Generator, segments: Sequence[Segment], begun: Generation, sampling: Sampling, deadline: float
) -> Generation | None:
    """How the model goes on after what it was made to begin with; None where the turn has no room left."""
    left = sampling.max_tokens - len(begun.token_ids)
    if left < 1:
        return None
    history = [*segments, Segment(SegmentKind.ACTION, begun.token_ids, begun.logprobs, begun.spans)]
    return await model.generate(history, replace(sampling, max_tokens=left), deadline=deadline)


def _said(token_ids: Sequence[int] | IntArray, instead_of: Generation) -> Generation:
    """A turn with these ids in place of a sampled one, under the same version."""
    ids = np.asarray(token_ids, dtype=np.int32)
    version = instead_of.spans[-1].version if instead_of.spans else WeightVersion(0)
    spans = (VersionSpan(version, 0, len(ids)),)
    return Generation(ids, np.zeros(len(ids), dtype=np.float32), spans, "end_of_turn")


def _joined(begun: Generation, rest: Generation) -> Generation:
    start = len(begun.token_ids)
    moved = tuple(replace(span, start=span.start + start, end=span.end + start) for span in rest.spans)
    return Generation(
        np.concatenate([begun.token_ids, rest.token_ids]),
        np.concatenate([begun.logprobs, rest.logprobs]),
        begun.spans + moved,
        rest.stop,
    )


def _cut(turn: Generation, room: int) -> Generation:
    """The first `room` tokens, as a turn that did not end."""
    n = min(len(turn.token_ids), room)
    return Generation(turn.token_ids[:n], turn.logprobs[:n], (replace(turn.spans[0], end=n),), "length")
