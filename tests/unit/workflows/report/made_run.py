"""A small run's folder, with everything that a report shows, and with a world that is hostile."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from actors.agent.trajectory import (
    Ending,
    Evidence,
    ImageRef,
    Label,
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
)
from cluster.storage import Folder
from tests.unit.workflows.evaluate.made_rows import said
from workflows.evaluate.document import arm_document
from workflows.evaluate.rows import row_of, write_rows
from workflows.grpo.recorder import ROW_SCHEMA
from workflows.grpo.records import row_for_people
from workflows.run_folder import RunFolder

HOSTILE = "</script><!--<img src=x onerror=alert(1)>"
KINDS = {"looking": Label.FREE, "image": Label.REQUIRED, "text": Label.REQUIRED}


def one(pattern: str, text: str) -> re.Match[str]:
    """The first match, which must be there."""
    found = re.search(pattern, text, re.DOTALL)
    assert found is not None, pattern
    return found


def picture(colour: str = "red", side: int = 32) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(sink, "PNG")
    return sink.getvalue()


def asked(i: int, kind: str, ref: ImageRef) -> Question:
    steps = {"looking": ("none",), "image": ("crop",), "text": ("text_search",)}[kind]
    return Question(
        f"{kind}-{i}", f"what is it, number {i}?", (ref,), ("verkuston",), KINDS[kind], kind=kind,
        first_tools=steps, tags=("crowded",),
    )  # fmt: skip


def played(question: Question, right: bool, ref: ImageRef, evidence: str = "it is verkuston.") -> Trajectory:
    """Looks at a part of the picture if the question needs it, searches text if it needs that, and answers."""
    ids = np.array([1, 2, 3, 4], np.int32)
    prompt = Segment(SegmentKind.PROMPT, ids, images=(PlacedImage(1, ref, 4),), text=f"<image>{question.text}")
    answer = "verkuston" if right else HOSTILE
    segments, calls = [prompt], []
    if question.kind != "looking":
        cut = (4, 4, 20, 20) if question.kind == "image" else None
        thumbnail = ref if cut else None
        found = Evidence(1, "city", evidence, "https://web.example/1", crop_box=cut, turn=1, thumbnail=thumbnail)
        request = ToolRequest(Tool.IMAGE_SEARCH, "red thing", ref) if cut else ToolRequest(Tool.TEXT_SEARCH, "city")
        calls.append(ToolCall(request, ToolResult(Outcome.OK, (found,), "", "Web", 0.5, 0.0, False, cut), 1, 0.1))
        action = "<img_search>red thing</img_search>" if cut else "<text_search>city</text_search>"
        segments.append(said(f"<reason>not known.</reason>{action}"))
    segments.append(said(f"<reason>so it is [1].</reason><answer>{answer} [1]</answer>"))
    reward = RewardParts(1.0 if right else 0.1, float(right), 1.0, 0.9 if calls else 1.0, len(calls))
    return Trajectory(
        question.id, 0, tuple(segments), tuple(calls), Ending.ANSWERED, answer=answer, citations=(1,) if calls else (),
        format_ok=True, reward=reward, seconds=2.0,
    )  # fmt: skip


def made_run(root: Path, *, each: int = 4, seed: int = 0, **settings: object) -> Folder:
    """A whole run: `each` questions of every kind, the arms sft and rl, three steps of GRPO."""
    folder = Folder(root)
    ref = RunFolder(folder).images().put(picture())
    questions = [asked(i, kind, ref) for kind in KINDS for i in range(each)]
    arms = {}
    for arm in ("rl", "sft"):
        told = [played(q, right=arm == "rl" or i % 2 == 0, ref=ref) for i, q in enumerate(questions)]
        rows = [row_of(arm, question, trajectory) for question, trajectory in zip(questions, told, strict=True)]
        write_rows(folder / "evaluate", f"{arm}.parquet", rows)
        arms[arm] = {"model": arm, "says": f"{arm} weights"} | arm_document([rows], 5)
    results = {"arms": arms, "max_calls": 5, "preset": "extended", "seed": seed, "versions": {"ray": "2.60.0"}}
    folder.write_json("evaluate/results.json", results)
    for stage in ("pretrain", "sft"):
        write_metrics(folder / stage, [{"loss": 2.0 / step, "exact/head": 0.1 * step} for step in range(1, 6)])
    write_metrics(folder / "grpo", [metrics(step) for step in range(1, 4)])
    write_rollouts(folder / "grpo", questions, ref)
    told_settings = {"run": {"name": root.name, "seed": seed, "storage": str(root)}, "agent": {"preset": "extended"}}
    folder.write_json("grpo/manifest.json", {"settings": told_settings | settings, "seconds": 30.0, "versions": {}})
    folder.write_json("demo.json", {"seconds": {"grpo": 30.0, "sft": 12.0}, "peak_memory_bytes": 2**30})
    return folder


def metrics(step: int) -> dict[str, float | None]:
    return {
        "sampled/reward/mean": 0.2 * step,
        "sampled/search/ratio_free": 0.5 / step,
        "sampled/search/ratio_required": 0.9,
        "staleness/mean_tokens": 1.0,
        "staleness/max": 2.0,
        "publish_lag_s": 0.1,
        "learner/mismatch_kl": None if step == 2 else 1e-4,
        "tokens/sampled_per_s": 100.0 * step,
        "idle/learner_publish_s": 0.25,
        "idle/learner_busy_share": 0.75,
        "eval/exact_match": 0.5 + 0.1 * step,
    }


def write_metrics(folder: Folder, lines: list[dict[str, float | None]]) -> None:
    folder.write_text(
        "metrics.jsonl",
        "".join(json.dumps({"step": i, "time": 1e9 + i} | line) + "\n" for i, line in enumerate(lines, 1)),
    )


def write_rollouts(folder: Folder, questions: list[Question], ref: ImageRef) -> None:
    for step in (1, 2, 3):
        rows = [row_for_people(step, q, played(q, right=step > 1, ref=ref)) for q in questions]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), sink)
        folder.write_bytes(f"trajectories/step-{step:06d}.parquet", sink.getvalue())


def without_record(folder: Folder, arm: str) -> None:
    """As if the arm's records were of a form that nobody knows."""
    from workflows.evaluate.rows import read_rows

    rows = [replace(row, record="{}") for row in read_rows(folder / "evaluate", f"{arm}.parquet")]
    write_rows(folder / "evaluate", f"{arm}.parquet", rows)
