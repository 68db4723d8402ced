"""The columns of a dataset: FVQA's as released (papers.md 3.1), and this project's own after them.

    prompt        [{role, content}], one `<image>` mark per picture
    images        [{bytes}]; bytes are null where pictures are kept by content alone
    reward_model  {style: rule, ground_truth, candidate_answers: JSON list of str}
    data_source, image_urls, data_id, category
    kind, designed_label, measured_label
    first_tools, tags  lists of str
    image_refs    [{sha256, width, height}], as many as images

Conversations have two more: `segments`, token by token as the teacher and the tools wrote them, so that SFT learns
exactly what the policy said; and `searches`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.agent.trajectory import (
    ImageRef,
    PlacedImage,
    Question,
    Segment,
    SegmentKind,
    Trajectory,
    VersionSpan,
    WeightVersion,
)

_REF = [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
_FVQA: list[tuple[str, pa.DataType]] = [
    ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
    ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
    (
        "reward_model",
        pa.struct([("style", pa.string()), ("ground_truth", pa.string()), ("candidate_answers", pa.string())]),
    ),
    ("data_source", pa.string()),
    ("image_urls", pa.list_(pa.string())),
    ("data_id", pa.string()),
    ("category", pa.string()),
]
_OURS: list[tuple[str, pa.DataType]] = [
    ("kind", pa.string()),
    ("designed_label", pa.string()),
    ("measured_label", pa.string()),
    ("image_refs", pa.list_(pa.struct(_REF))),
    ("first_tools", pa.list_(pa.string())),
    ("tags", pa.list_(pa.string())),
]
_SEGMENT = pa.struct(
    [
        ("kind", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("images", pa.list_(pa.struct([("offset", pa.int32()), ("n_tokens", pa.int32()), *_REF]))),
        ("text", pa.string()),
    ]
)

QUESTIONS = pa.schema([*_FVQA, *_OURS])
CONVERSATIONS = pa.schema([*_FVQA, *_OURS, ("segments", pa.list_(_SEGMENT)), ("searches", pa.int32())])


class BadConversation(ValueError):
    """A row whose segments cannot be trained on."""


def question_row(question: Question, pictures: Sequence[bytes | None]) -> dict[str, Any]:
    """`pictures` are the bytes of its images, or None for those that stay in the blobs."""
    first, *others = question.answers or ("",)
    text = "<image>" * len(question.images) + question.text
    return {
        "prompt": [{"role": "user", "content": text}],
        "images": [{"bytes": data} for data in pictures],
        "reward_model": {"style": "rule", "ground_truth": first, "candidate_answers": json.dumps(others)},
        "data_source": question.source,
        "image_urls": None,
        "data_id": question.id,
        "category": question.category,
        "kind": question.kind,
        "designed_label": question.designed_label.value,
        "measured_label": question.measured_label.value,
        "image_refs": [_ref_row(ref) for ref in question.images],
        "first_tools": list(question.first_tools),
        "tags": list(question.tags),
    }


def conversation_row(question: Question, pictures: Sequence[bytes | None], trajectory: Trajectory) -> dict[str, Any]:
    """The question and everything that was said, in order."""
    segments = [
        {
            "kind": segment.kind.value,
            "token_ids": segment.token_ids,
            "images": [
                {"offset": placed.offset, "n_tokens": placed.n_tokens, **_ref_row(placed.ref)}
                for placed in segment.images
            ],
            "text": segment.text,
        }
        for segment in trajectory.segments
    ]
    return {**question_row(question, pictures), "segments": segments, "searches": trajectory.searches}


def segments_of(row: Mapping[str, Any]) -> tuple[Segment, ...]:
    """A conversation's segments. Raise `BadConversation` for a row that is none."""
    try:
        segments = tuple(_segment(segment) for segment in row["segments"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadConversation(f"segments cannot be read: {error!r}") from error
    if not any(segment.trained and len(segment.token_ids) for segment in segments):
        raise BadConversation("no segment is the policy's: there is nothing to learn")
    return segments


def _segment(row: Mapping[str, Any]) -> Segment:
    ids = np.asarray(row["token_ids"], dtype=np.int32)
    kind = SegmentKind(row["kind"])
    placed = tuple(
        PlacedImage(int(it["offset"]), ImageRef(it["sha256"], int(it["width"]), int(it["height"])), int(it["n_tokens"]))
        for it in row["images"]
    )
    if kind is not SegmentKind.ACTION:
        return Segment(kind, ids, images=placed, text=row["text"])
    spans = (VersionSpan(WeightVersion(0), 0, len(ids)),)
    return Segment(kind, ids, np.zeros(len(ids), dtype=np.float32), spans, placed, row["text"])


def _ref_row(ref: ImageRef) -> dict[str, Any]:
    return {"sha256": ref.sha256, "width": ref.width, "height": ref.height}
