"""Pictures, questions and conversations for the tests of datasets."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from actors.agent.seams import ImageMissing
from actors.agent.trajectory import (
    Ending,
    Evidence,
    ImageRef,
    Label,
    Outcome,
    PlacedImage,
    Question,
    Segment,
    SegmentKind,
    Tool,
    ToolCall,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from actors.model.images import measure

IMAGE_TOKEN = 5


class MemoryImages:
    """An ImageStore in a dictionary that refuses what is no image."""

    def __init__(self):
        self.blobs = {}

    def put(self, data):
        width, height = measure(data)
        ref = ImageRef(hashlib.sha256(data).hexdigest(), width, height)
        self.blobs[ref.sha256] = data
        return ref

    def get(self, ref):
        if ref.sha256 not in self.blobs:
            raise ImageMissing(ref.sha256)
        return self.blobs[ref.sha256]

    def has(self, ref):
        return ref.sha256 in self.blobs


def png(seed=0, side=28):
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def question(images=(), id="q1", label=Label.REQUIRED, answers=("red star", "a red star")):
    return Question(
        id, "what is it?", tuple(images), answers, label, category="thing", kind="image", source="made",
        first_tools=("crop", "image_search"), tags=("crowded",),
    )  # fmt: skip


def action(*ids):
    ids = np.array(ids, dtype=np.int32)
    spans = (VersionSpan(WeightVersion(0), 0, len(ids)),)
    return Segment(SegmentKind.ACTION, ids, np.zeros(len(ids), np.float32), spans, text="said")


def trajectory(
    ref=None, answer="red star", citations=(1,), evidence="the red star shines", ending=Ending.ANSWERED, **more
):
    prompt = np.array([1, IMAGE_TOKEN, 2] if ref else [1, 2], dtype=np.int32)
    placed = (PlacedImage(1, ref, 4),) if ref else ()
    segments = (
        Segment(SegmentKind.PROMPT, prompt, images=placed, text="asked"),
        action(7, 8),
        Segment(SegmentKind.OBSERVATION, np.array([9, 9, 9], dtype=np.int32), text="found"),
        action(10, 11, 12),
    )
    result = ToolResult(Outcome.OK, (Evidence(1, "title", evidence),))
    calls = (ToolCall(ToolRequest(Tool.TEXT_SEARCH, "star"), result, 1, 0.0),)
    return Trajectory(
        "q1", 0, segments, calls, ending, answer=answer, citations=citations, **{"format_ok": True, **more}
    )
