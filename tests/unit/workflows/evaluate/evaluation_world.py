"""A scripted model, a tiny tokenizer and a toolbox: enough of a world to play a baseline's episode in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS
from actors.agent.seams import Generation, Sampling
from actors.agent.trajectory import (
    Evidence,
    ImageRef,
    Outcome,
    Question,
    Segment,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
)
from actors.model.renderer import ChatRenderer
from actors.model.tiny import build_tokenizer

PICTURE = ImageRef("a" * 64, 112, 112)
QUESTION = Question("q", "who founded the red star?", (PICTURE,), ("Ada Lune",), kind="image_text")
PREFIX = "<answer>"


class Counter:
    def n_tokens(self, ref: ImageRef) -> int:
        return 16


def renderer() -> ChatRenderer:
    texts = ["who founded the red star? a red star is unknown. it is Velo. Velo founder Ada Lune is in [1]."] * 3
    return ChatRenderer(build_tokenizer(texts, 500, tags=TAGS), Counter())


class Scripted:
    """A model that writes these turns. A turn that a policy has begun is continued with the next script line."""

    def __init__(self, renderer: ChatRenderer, turns: Sequence[str], stop: str = "end_of_turn") -> None:
        self._renderer, self._turns, self._stop = renderer, list(turns), stop
        self.histories: list[list[Segment]] = []
        self.rooms: list[int] = []

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        self.histories.append(list(segments))
        self.rooms.append(sampling.max_tokens)
        whole = self._renderer.action(self._turns.pop(0))
        ids = whole[: sampling.max_tokens]
        spans = (VersionSpan(3, 0, len(ids)),)  # type: ignore[arg-type]
        return Generation(
            ids, np.full(len(ids), -0.5, np.float32), spans, self._stop if len(ids) == len(whole) else "length"
        )


class Finds:
    """A Toolbox that finds one page for everything and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[ToolRequest] = []

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        self.requests.append(request)
        return ToolResult(Outcome.OK, (Evidence(1, "Velo", "the founder of Velo is Ada Lune."),))


async def play(policy, renderer: ChatRenderer, toolbox, question: Question = QUESTION, preset="compact") -> Trajectory:
    return await run_episode(
        question, 0, PRESETS[preset], policy, renderer, toolbox,
        sampling=Sampling(temperature=0, max_tokens=200), limits=Limits(), clock=lambda: 0.0,
    )  # fmt: skip
