"""Trajectories as plain JSON and as rows of Parquet: for checkpoints, which read them back, and for people.

Always true: `trajectory_from(trajectory_to(t))` has the same tokens, log-probs (bit by bit), versions, calls and
reward as `t`. JSON and not pickle, because a checkpoint may come from a bucket that others can write to.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from actors.agent.trajectory import (
    Ending,
    Evidence,
    Failure,
    ImageRef,
    Outcome,
    PlacedImage,
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
)
from workflows.grpo.step_metrics import label_of


def trajectory_to(trajectory: Trajectory) -> dict[str, Any]:
    """Plain values only."""
    return _plain(trajectory)


def trajectory_from(data: Mapping[str, Any]) -> Trajectory:
    """Raise KeyError, TypeError or ValueError for what `trajectory_to` did not write."""
    return Trajectory(
        **{
            **data,
            "segments": tuple(_segment(s) for s in data["segments"]),
            "tool_calls": tuple(_call(c) for c in data["tool_calls"]),
            "ending": Ending(data["ending"]),
            "failure": Failure(data["failure"]),
            "citations": tuple(data["citations"]),
            "reward": RewardParts(**data["reward"]) if data["reward"] else None,
        }
    )


def row_for_people(step: int, question: Question, trajectory: Trajectory) -> dict[str, Any]:
    """One row of trajectories/*.parquet: what one wants to see and sort by, and the whole record as JSON."""
    reward = trajectory.reward
    return {
        "step": step,
        "question_id": question.id,
        "sample_index": trajectory.sample_index,
        "kind": question.kind,
        "label": label_of(question).value,
        "question": question.text,
        "answers": list(question.answers),
        "answer": trajectory.answer,
        "reward": reward.total if reward else None,
        "accuracy": reward.accuracy if reward else None,
        "searches": trajectory.searches,
        "ending": trajectory.ending.value,
        "failure": trajectory.failure.value,
        "problem": trajectory.problem,
        "seconds": trajectory.seconds,
        "sampled_tokens": trajectory.sampled_tokens,
        "text": "\n".join(f"[{s.kind.value}] {s.text}" for s in trajectory.segments),
        "record": json.dumps(trajectory_to(trajectory)),
    }


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and arrays become dicts and lists; a float32 becomes the same number as a double."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _segment(data: Mapping[str, Any]) -> Segment:
    images = tuple(PlacedImage(i["offset"], ImageRef(**i["ref"]), i["n_tokens"]) for i in data["images"])
    return Segment(
        kind=SegmentKind(data["kind"]),
        token_ids=np.asarray(data["token_ids"], dtype=np.int32),
        logprobs=np.asarray(data["logprobs"], dtype=np.float32),
        spans=tuple(VersionSpan(**span) for span in data["spans"]),
        images=images,
        text=data["text"],
    )


def _call(data: Mapping[str, Any]) -> ToolCall:
    return ToolCall(request=_request(data["request"]), result=_result(data["result"]), **_rest(data))


def _rest(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k not in ("request", "result")}


def _request(data: Mapping[str, Any]) -> ToolRequest:
    image = _ref(data["image"])
    return ToolRequest(**{**data, "tool": Tool(data["tool"]), "image": image, "box": _box(data["box"])})


def _result(data: Mapping[str, Any]) -> ToolResult:
    evidence = tuple(_evidence(e) for e in data["evidence"])
    made = {"outcome": Outcome(data["outcome"]), "evidence": evidence, "crop_box": _box(data["crop_box"])}
    return ToolResult(**{**data, **made, "crop": _ref(data.get("crop"))})


def _evidence(data: Mapping[str, Any]) -> Evidence:
    thumbnail = _ref(data["thumbnail"])
    return Evidence(**{**data, "crop_box": _box(data["crop_box"]), "thumbnail": thumbnail})


def _ref(data: Mapping[str, Any] | None) -> ImageRef | None:
    return ImageRef(**data) if data else None


def _box(corners: list[int] | None) -> tuple[int, int, int, int] | None:
    return None if corners is None else (corners[0], corners[1], corners[2], corners[3])
