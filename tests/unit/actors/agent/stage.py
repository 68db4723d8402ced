"""A stage for episodes: a renderer of characters, a policy that reads from a script, a toolbox that keeps a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import PRESETS, Preset
from actors.agent.seams import Generation, Observer, Sampling, Toolbox
from actors.agent.trajectory import (
    Evidence,
    ImageRef,
    IntArray,
    Outcome,
    PlacedImage,
    Question,
    Segment,
    SegmentKind,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
    WeightVersion,
)

PICTURE, SECOND, THUMBNAIL, CROP = (ImageRef(letter * 64, 112, 84) for letter in "abcd")
IMAGE_TOKENS = 12  # of any picture, expanded
QUESTION = Question("q1", "who founded it?", images=(PICTURE,), answers=("ilse tarn",))
WHOLE = "<reason>r</reason><img_search><img></img_search>"


def ask(query: str = "velmora founder") -> str:
    return f"<reason>r</reason><text_search>{query}</text_search>"


def say(answer: str = "ilse tarn") -> str:
    return f"<reason>r</reason><answer>{answer}</answer>"


class Letters:
    """A `Renderer` whose tokens are characters: 1 is an image, 2 ends a turn."""

    image, end_of_turn = 1, 2

    def open(self, text: str, images: Sequence[ImageRef]) -> Segment:
        return self._segment(SegmentKind.PROMPT, text, images)

    def observe(self, text: str, images: Sequence[ImageRef] = ()) -> Segment:
        return self._segment(SegmentKind.OBSERVATION, "\n" + text, images)

    def decode(self, token_ids: IntArray) -> str:
        return "".join(chr(i) for i in token_ids if i != self.end_of_turn)

    def forbidden(self, token_ids: IntArray) -> bool:
        return self.image in token_ids.tolist()

    def _segment(self, kind: SegmentKind, text: str, images: Sequence[ImageRef]) -> Segment:
        ids = np.array([ord(c) for c in text.replace("<image>", chr(self.image))], dtype=np.int32)
        offsets = np.flatnonzero(ids == self.image).tolist()
        placed = tuple(PlacedImage(o, ref, IMAGE_TOKENS) for o, ref in zip(offsets, images, strict=True))
        return Segment(kind, ids, images=placed, text=text)


class Script:
    """A `Generator` that says its lines one after the other; a line that is an exception is raised.

    `seen` holds the history, sampling and deadline of each call.
    """

    def __init__(self, *lines: str | Exception | Generation) -> None:
        self.lines = list(lines)
        self.seen: list[tuple[tuple[Segment, ...], Sampling, float]] = []

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        self.seen.append((tuple(segments), sampling, deadline))
        await asyncio.sleep(0)
        line = self.lines[len(self.seen) - 1]
        if isinstance(line, Exception):
            raise line
        return line if isinstance(line, Generation) else spoken(line, sampling.max_tokens)


def spoken(line: str, most: int = 10_000, stop: str = "") -> Generation:
    """A line as an engine returns it: cut at `most` tokens."""
    ids = np.array([*map(ord, line), Letters.end_of_turn], dtype=np.int32)
    cut = ids[:most]
    spans = (VersionSpan(WeightVersion(3), 0, len(cut)),) if len(cut) else ()
    stop = stop or ("end_of_turn" if len(cut) == len(ids) else "length")
    return Generation(cut, np.full(len(cut), -0.5, dtype=np.float32), spans, stop)


class Tools:
    """A `Toolbox` that answers from `results` in turn (then always with one piece of evidence)."""

    def __init__(self, *results: ToolResult | Exception) -> None:
        self.results = list(results)
        self.requests: list[tuple[ToolRequest, float]] = []

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        self.requests.append((request, deadline))
        await asyncio.sleep(0)
        made = len(self.requests)
        result = self.results[made - 1] if made <= len(self.results) else found(f"page {made}")
        if isinstance(result, Exception):
            raise result
        return result


def found(*texts: str, thumbnail: ImageRef | None = None, crop: ImageRef | None = None) -> ToolResult:
    rows = tuple(Evidence(i, "velmora", text, thumbnail=thumbnail) for i, text in enumerate(texts, start=1))
    return ToolResult(Outcome.OK, rows, crop_box=(10, 20, 30, 40) if crop else None, crop=crop)


class Ticks:
    """A clock that stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def play(
    script: Script,
    tools: Toolbox | None = None,
    *,
    preset: str | Preset = "extended",
    question: Question = QUESTION,
    limits: Limits | None = None,
    sampling: Sampling | None = None,
    clock: Callable[[], float] | None = None,
    observer: Observer | None = None,
    max_images: int | None = None,
) -> Trajectory:
    return await run_episode(
        question,
        0,
        PRESETS[preset] if isinstance(preset, str) else preset,
        script,
        Letters(),
        tools or Tools(),
        sampling=sampling or Sampling(max_tokens=4000),
        limits=limits or Limits(),
        clock=clock or Ticks(),
        observer=observer or (lambda event, detail: None),
        max_images=max_images,
    )
