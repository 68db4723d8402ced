"""A small world for the sampler's tests: pictures, a tool, a scorer and a policy, all importable in Ray's workers."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from actors.agent.seams import Generation, Generator, ImageMissing, Renderer, Sampling
from actors.agent.trajectory import (
    Evidence,
    ImageRef,
    Outcome,
    Question,
    RewardParts,
    Segment,
    SegmentKind,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from actors.model.renderer import ChatRenderer

UNREACHABLE = ImageRef("f" * 64, 112, 84)  # it lies where storage fails


class Pictures:
    """An ImageStore in memory."""

    def __init__(self, n: int, size: tuple[int, int] = (112, 84)) -> None:
        self._bytes: dict[str, bytes] = {}
        self.refs = [self.put(_picture(seed, size)) for seed in range(n)]

    def put(self, data: bytes) -> ImageRef:
        with Image.open(io.BytesIO(data)) as picture:
            ref = ImageRef(hashlib.sha256(data).hexdigest(), *picture.size)
        self._bytes[ref.sha256] = data
        return ref

    def get(self, ref: ImageRef) -> bytes:
        if ref == UNREACHABLE:
            raise ConnectionError("storage is down")
        if ref.sha256 not in self._bytes:
            raise ImageMissing(ref.sha256)
        return self._bytes[ref.sha256]


def _picture(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


class ThumbnailSearch:
    """A Toolbox that finds one page with a picture for whatever is asked."""

    def __init__(self, thumbnail: ImageRef) -> None:
        self._thumbnail = thumbnail

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        hit = Evidence(1, "A page", f"about {request.query}", thumbnail=self._thumbnail)
        return ToolResult(Outcome.OK, (hit,), provider="scripted")


class CountingScorer:
    """Rewards the number of sampled tokens; its judge is down for questions called `unjudged`."""

    async def score(self, question: Question, trajectory: Trajectory) -> RewardParts:
        if question.id.startswith("unjudged"):
            raise ConnectionError("the judge is down")
        return RewardParts(float(trajectory.sampled_tokens), 0.0, 0.0, 1.0, trajectory.searches)


@dataclass
class SearchThenSample:
    """Writes the first turn itself, a text search, and leaves the rest to the engine."""

    engine: Generator
    renderer: ChatRenderer

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        if any(segment.kind is SegmentKind.ACTION for segment in segments):
            return await self.engine.generate(segments, sampling, deadline=deadline)
        ids = self.renderer.action("<reason>unknown</reason><text_search>red star</text_search>")
        n = len(ids)
        return Generation(ids, np.zeros(n, np.float32), (VersionSpan(WeightVersion(0), 0, n),), "end_of_turn")


def search_then_sample(engine: Generator, renderer: ChatRenderer, question: Question) -> SearchThenSample:
    """The `PolicyFactory` of SearchThenSample."""
    return SearchThenSample(engine, renderer)


class Endless:
    """Never answers: what is cancelled must be cancelled from outside."""

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


def endless(engine: Generator, renderer: Renderer, question: Question) -> Endless:
    """The `PolicyFactory` of Endless."""
    return Endless()
