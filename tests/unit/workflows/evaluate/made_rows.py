"""Episodes and rows of an evaluation, as tests want them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from actors.agent.trajectory import (
    Ending,
    Evidence,
    Failure,
    ImageRef,
    Label,
    Outcome,
    Question,
    RewardParts,
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
from workflows.evaluate.rows import Row, row_of

PICTURE = ImageRef("a" * 64, 8, 8)
QUESTION = Question(
    "q1", "who?", (PICTURE,), ("Ada Lune", "A. Lune"), Label.REQUIRED, kind="image_text",
    first_tools=("crop", "image_search"), tags=("crowded",),
)  # fmt: skip


def call(
    tool: Tool, outcome: Outcome = Outcome.OK, query: str = "", turn: int = 1, says: str = "x", number: int = 1
) -> ToolCall:
    found = (Evidence(number, "t", says),) if outcome is Outcome.OK else ()
    return ToolCall(ToolRequest(tool, query), ToolResult(outcome, found, cost_usd=0.01), turn, 0.0)


def said(text: str, version: int = 1) -> Segment:
    """A turn of three tokens."""
    ids, spans = np.array([1, 2, 3], np.int32), (VersionSpan(WeightVersion(version), 0, 3),)
    return Segment(SegmentKind.ACTION, ids, np.zeros(3, np.float32), spans, text=text)


def episode(
    answer: str = "Ada Lune", calls=(), ending=Ending.ANSWERED, failure=Failure.NONE, good=1.0, cites=()
) -> Trajectory:
    turn = said("said", version=2)
    return Trajectory(
        "q1", 0, (Segment(SegmentKind.PROMPT, turn.token_ids), turn), tuple(calls), ending, failure, answer,
        tuple(cites), format_ok=True, seconds=2.0, reward=RewardParts(0.5, 1.0, good, 1.0, len(calls)),
    )  # fmt: skip


ROW = row_of("sft", QUESTION, episode())


def row(**changes) -> Row:
    return replace(ROW, **changes)
