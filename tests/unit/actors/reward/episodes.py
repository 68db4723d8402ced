"""Hand-made episodes for the tests of the reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.agent.trajectory import (
    Ending,
    Failure,
    Outcome,
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

QUESTION = Question("q", "Who founded Velmora?", answers=("Ilse Tarn", "I. Tarn"))
LOOK = "<reason>r</reason><img_search><img></img_search>"
ASK = "<reason>r</reason><text_search>Velmora founder</text_search>"


def say(answer: str) -> str:
    return f"<reason>r</reason><answer>{answer}</answer>"


def action(text: str) -> Segment:
    ids = np.arange(3, dtype=np.int32)
    return Segment(SegmentKind.ACTION, ids, np.zeros(3, np.float32), (VersionSpan(WeightVersion(0), 0, 3),), text=text)


def episode(
    turns: Sequence[str],
    answer: str,
    *,
    outcomes: Sequence[Outcome] = (),
    failure: Failure = Failure.NONE,
    format_ok: bool = True,
    ending: Ending = Ending.ANSWERED,
) -> Trajectory:
    """An episode whose turns read `turns`; its calls ended in `outcomes`."""
    prompt = Segment(SegmentKind.PROMPT, np.arange(2, dtype=np.int32))
    calls = [
        ToolCall(ToolRequest(Tool.TEXT_SEARCH, "x"), ToolResult(outcome), turn, 0.0)
        for turn, outcome in enumerate(outcomes, start=1)
    ]
    return Trajectory(
        question_id="q",
        sample_index=0,
        segments=(prompt, *(action(text) for text in turns)),
        tool_calls=tuple(calls),
        ending=ending,
        failure=failure,
        answer=answer,
        format_ok=format_ok,
    )
