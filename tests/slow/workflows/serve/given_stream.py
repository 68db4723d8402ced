"""The bytes of a stream, as the service would send them, for a browser that is given them instead: every kind of step,
evidence with addresses and pictures that are none, a citation of nothing, and markup wherever others write.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from workflows.serve.stream import DONE, event

RED, BLUE = (200, 30, 30), (30, 30, 200)


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(sink, "PNG")
    return sink.getvalue()


def chunk(delta: dict[str, Any] | None = None, **choice: Any) -> bytes:
    one = {"index": 0, "delta": delta or {}, "finish_reason": None, **choice}
    return event({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [one]})


def thumbnail(colour: tuple[int, int, int]) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(8, 8, colour)).decode()}"


def evidence(number: int, **given: Any) -> dict[str, Any]:
    return {"number": number, "title": f"title {number}", "text": "text", "url": "https://example.org/page", **given}


STEPS = (
    {"type": "turn", "number": 1},
    {"type": "search", "turn": 1, "tool": "image_search", "expression": "the star", "box": None, "image": 1},
    {
        "type": "result", "turn": 1, "tool": "image_search", "outcome": "ok", "message": "", "provider": "lens",
        "seconds": 0.5, "cost_usd": 0.015, "cached": False, "image": 1, "crop_box": [10, 20, 60, 80],
        "thumbnails": {"t": thumbnail(RED), "u": "javascript:alert(1)"},
        "evidence": [evidence(1, thumbnail="t"), evidence(2, url="javascript:alert(1)", thumbnail="u")],
    },
    {"type": "something new", "turn": 1},
    {"type": "turn", "number": 2},
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>"
ANSWER = f"\U0001f9ed It is {HOSTILE} [2], not that [7]."
BEGUN = b"".join(
    (
        chunk({"role": "assistant", "content": ""}),
        b": the agent is at work\n\n",
        *(chunk(search_step=step) for step in STEPS[:3]),
        chunk({"reasoning_content": f"Seen in [1]: {HOSTILE}"}),
        *(chunk(search_step=step) for step in STEPS[3:]),
    )
)


def citation_of(mark: str) -> dict[str, Any]:
    at = ANSWER.index(mark)
    told = {"start_index": at, "end_index": at + len(mark), "title": "title 2", "url": "https://example.org/page"}
    return {"type": "url_citation", "url_citation": told}


WHOLE = b"".join(
    (
        BEGUN,
        chunk({"content": ANSWER[:9]}),
        chunk({"content": ANSWER[9:]}),
        chunk({"annotations": [citation_of("[2]")]}),
        chunk(finish_reason="stop", weights_version=41, search_unavailable=False),
        event({"choices": [], "usage": {"total_tokens": 1234, "tool_calls": 1, "cost_usd": 0.015}}),
        DONE,
    )
)


def cut_short(reason: str, content: str, *notices: str) -> bytes:
    """A stream that a bound ended: `content` is as much as there is of an answer."""
    told = [{"type": "notice", "reason": reason, "message": notice} for notice in notices]
    steps = b"".join(chunk(search_step=step) for step in told)
    return BEGUN + steps + chunk({"content": content}) + chunk(finish_reason=reason, weights_version=41) + DONE
