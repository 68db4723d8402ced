"""What a report shows of an episode, as plain JSON: read from Parquet, column by column, and from the record in it.

The record is `workflows.grpo.records`' trajectory. One that cannot be read is shown by its text alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.prompts import PRESETS
from actors.agent.protocol import Answer, Grammar, parse_turn
from actors.agent.seams import ImageStore
from actors.agent.trajectory import Evidence, Failure, ImageRef, Segment, SegmentKind, Tool, ToolCall, Trajectory
from cluster.storage import Folder
from workflows.grpo.records import trajectory_from
from workflows.report.pictures import EDGE, THUMBNAIL_EDGE, Album
from workflows.report.sampling import evenly, first_of_each, outcome, questions_shown, spread
from workflows.report.sources import RunFacts
from workflows.report.tables import FIRST, first_step
from workflows.run_folder import RunFolder
from workflows.steps import action_words

GRPO_ARM = "GRPO rollouts"
LIGHT = (
    "question_id", "sample_index", "kind", "label", "exact_match", "accuracy", "ending", "failure", "text_searches",
    "image_searches",
)  # fmt: skip
DETAIL = (
    *LIGHT, "step", "question", "answers", "answer", "f1", "judged", "judge_says", "tags", "first_tools", "first_tool",
    "first_hit", "evidence_hit", "cited", "cited_support", "cost_usd", "sampled_tokens", "total_tokens", "seconds",
    "attempts", "reward", "problem", "text", "record",
)  # fmt: skip
LONGEST_TEXT = 1200  # characters of one piece of what was found or written
PER_STEP = 4  # episodes of one step of GRPO
SHOWN_FACTS = ("first_hit", "evidence_hit", "cited_support")


@dataclass(frozen=True)
class Shown:
    """Episodes of all runs, ready for the page; `of`: how many there are, by run and arm; `notes`: what is damaged."""

    episodes: list[dict[str, Any]]
    of: dict[str, int]
    notes: list[str]
    behaviour: dict[str, dict[str, float]] = field(default_factory=dict)  # by arm, counted from all rows


def shown_of(run: RunFacts, n: int, album: Album) -> Shown:
    """At most `n` episodes of every arm, about the same questions, and `n` of GRPO."""
    notes: list[str] = []
    grammar = _grammar(run)
    evaluate = run.folder / "evaluate"
    lights = {arm: rows for arm in run.arms if (rows := _rows(evaluate, f"{arm}.parquet", LIGHT, notes))}
    ids = questions_shown(lights, n)
    picked: list[tuple[str, Mapping[str, Any]]] = []
    for arm, rows in lights.items():
        places = first_of_each(rows, ids)
        picked += [(arm, row) for row in _rows(evaluate, f"{arm}.parquet", DETAIL, notes, places)]
    picked += [(GRPO_ARM, row) for row in _rollouts(run.folder / "grpo/trajectories", n, notes)]
    of = {arm: len(rows) for arm, rows in lights.items()}
    read = [(arm, row, _trajectory(row)) for arm, row in picked]
    _fill(album, run, [trajectory for _, _, trajectory in read if trajectory is not None])
    episodes = [document(run.name, arm, row, trajectory, grammar) for arm, row, trajectory in read]
    return Shown(episodes, of, list(dict.fromkeys(notes)), {arm: behaviour_of(rows) for arm, rows in lights.items()})


def behaviour_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of right and wrong with and without a search, for runs whose results.json does not have them."""
    counts = {f"{right}_{searched}": 0.0 for right in ("right", "wrong") for searched in ("unsearched", "searched")}
    for row in rows:
        if row.get("failure") not in (Failure.INFRA, Failure.DATA):
            searches = (row.get("text_searches") or 0) + (row.get("image_searches") or 0)
            counts[f"{'right' if row.get('exact_match') else 'wrong'}_{'searched' if searches else 'unsearched'}"] += 1
    total = sum(counts.values())
    return {name: n / total for name, n in counts.items()} if total else {}


def document(
    run: str, arm: str, row: Mapping[str, Any], trajectory: Trajectory | None, grammar: Grammar
) -> dict[str, Any]:
    """One episode as plain JSON. Strings are as they were written; whoever shows them must show them as text."""
    step = row.get("step")
    key = "/".join(str(part) for part in (run, arm, row["question_id"], row.get("sample_index") or 0))
    found: dict[str, Any] = {
        "key": key if step is None else f"{key}/{step}",
        "run": run,
        "arm": arm,
        "step": step,
        "question_id": row["question_id"],
        "kind": row.get("kind") or "",
        "label": row.get("label") or "",
        "tags": list(row.get("tags") or ()),
        "question": _cut(row.get("question") or ""),
        "answers": [_cut(answer) for answer in row.get("answers") or ()][:8],
        "answer": _cut(row.get("answer") or ""),
        "outcome": outcome(row),
        "ending": row.get("ending") or "",
        "problem": _cut(row.get("problem") or ""),
        "right_first": [first_step(name) for name in row.get("first_tools") or ()],
        "first": FIRST.get(str(row.get("first_tool") or ""), ""),
        "judged": row.get("judged"),
        "judge_says": _cut(row.get("judge_says") or ""),
        "facts": {name: bool(row[name]) for name in SHOWN_FACTS if row.get(name) is not None},
        "f1": _rounded(row.get("f1")),
        "sampled_tokens": row.get("sampled_tokens"),
        "total_tokens": row.get("total_tokens"),
        "seconds": _rounded(row.get("seconds")),
        "attempts": row.get("attempts"),
        "cost_usd": row.get("cost_usd"),
        "reward": None,
        "tools": [],
        "versions": [],
        "images": [],
        "turns": [],
    }
    if trajectory is None:
        return found | {"text": _cut(row.get("text") or "")}
    reward = trajectory.reward
    return found | {
        "reward": reward and {
            "total": _rounded(reward.total), "accuracy": _rounded(reward.accuracy), "format": _rounded(reward.format),
            "penalty": _rounded(reward.penalty), "searches": reward.searches,
        },
        "tools": sorted({tool_of(call) for call in trajectory.tool_calls if call.executed}) or ["none"],
        "versions": list(trajectory.versions),
        "images": [image.ref.sha256 for s in trajectory.segments[:1] for image in s.images],
        "turns": _turns(trajectory, grammar),
    }  # fmt: skip


def tool_of(call: ToolCall) -> str:
    """As the filter calls it."""
    if call.request.tool is Tool.TEXT_SEARCH:
        return FIRST["text_search"]
    return FIRST["crop" if call.request.query or call.request.box else "image_search"]


def _turns(trajectory: Trajectory, grammar: Grammar) -> list[dict[str, Any]]:
    calls = {call.turn: call for call in trajectory.tool_calls}
    actions = [segment for segment in trajectory.segments if segment.kind is SegmentKind.ACTION]
    turns = [
        _turn(number, segment, calls.get(number), trajectory.citations, grammar)
        for number, segment in enumerate(actions, start=1)
    ]
    for number, image_number in _crops_shown(trajectory).items():
        turns[number - 1]["call"]["crop_number"] = image_number
    return turns


def _crops_shown(trajectory: Trajectory) -> dict[int, int]:
    """By turn, the number that a crop has among the episode's pictures, where the model was shown one."""
    crops = {call.turn: call.result.crop for call in trajectory.tool_calls}
    numbers: dict[int, int] = {}
    turn = pictures = 0
    for segment in trajectory.segments:
        turn += segment.kind is SegmentKind.ACTION
        if segment.kind is SegmentKind.OBSERVATION and segment.images and segment.images[0].ref == crops.get(turn):
            numbers[turn] = pictures + 1
        pictures += len(segment.images)
    return numbers


def _turn(
    number: int, segment: Segment, call: ToolCall | None, cited: Sequence[int], grammar: Grammar
) -> dict[str, Any]:
    turn = parse_turn(segment.text, grammar)
    found: dict[str, Any] = {
        "n": number,
        "reason": _cut(turn.reason),
        "tokens": len(segment.token_ids),
        "versions": sorted({int(span.version) for span in segment.spans}),
        "problem": turn.problem,
    }
    if turn.action is None:
        found["text"] = _cut(segment.text)
    elif isinstance(turn.action, Answer):
        found["answer"] = _cut(turn.action.text)
        found["citations"] = list(turn.action.citations)
    else:
        found["action"] = _cut(action_words(turn.action))
    if call is not None:
        found["call"] = _call(call, cited)
    return found


def _call(call: ToolCall, cited: Sequence[int]) -> dict[str, Any]:
    request, result = call.request, call.result
    found: dict[str, Any] = {
        "tool": tool_of(call),
        "outcome": result.outcome.value,
        "message": _cut(result.message),
        "provider": result.provider,
        "seconds": _rounded(result.latency_s),
        "cached": result.cached,
        "cost_usd": result.cost_usd,
        "evidence": [_evidence(item, item.number in cited) for item in result.evidence],
    }
    if request.image is not None:
        found |= {"image": request.image.sha256, "box": _pixels(call)}
    return found


def _pixels(call: ToolCall) -> list[int] | None:
    """Where it looked: the cut as it was made, or else as it was asked for (thousandths of width and height)."""
    if call.result.crop_box:
        return list(call.result.crop_box)
    box, image = call.request.box, call.request.image
    if not box or image is None:
        return None
    sides = (image.width, image.height, image.width, image.height)
    return [round(part * side / 1000) for part, side in zip(box, sides, strict=True)]


def _evidence(item: Evidence, cited: bool) -> dict[str, Any]:
    return {
        "number": item.number,
        "title": _cut(item.title),
        "text": _cut(item.text),
        "url": item.url[:LONGEST_TEXT],
        "thumbnail": item.thumbnail.sha256 if item.thumbnail else None,
        "cited": cited,
    }


def _fill(album: Album, run: RunFacts, trajectories: Sequence[Trajectory]) -> None:
    """Pictures of questions and of searches first, then thumbnails as long as there is room."""
    store: ImageStore = RunFolder(run.folder).images()
    large: dict[ImageRef, None] = {}
    small: dict[ImageRef, None] = {}
    for trajectory in trajectories:
        large |= {image.ref: None for segment in trajectory.segments[:1] for image in segment.images}
        large |= {call.request.image: None for call in trajectory.tool_calls if call.request.image}
        small |= {item.thumbnail: None for item in trajectory.evidence if item.thumbnail}
    for refs, edge in ((large, EDGE), (small, THUMBNAIL_EDGE)):
        for ref in refs:
            album.add(ref, store, edge)


def _rollouts(folder: Folder, n: int, notes: list[str]) -> list[dict[str, Any]]:
    """Up to `n` episodes of GRPO, of steps evenly spread from the first to the last."""
    names = evenly([name for name in folder.list() if name.endswith(".parquet")], max(1, n // PER_STEP) if n else 0)
    found: list[dict[str, Any]] = []
    for name in names:
        light = _rows(folder, name, LIGHT, notes)
        order = spread((str(place), (row.get("kind"), outcome(row))) for place, row in enumerate(light))
        found += _rows(folder, name, DETAIL, notes, [int(place) for place in order[:PER_STEP]])
    return found[:n]


def _rows(
    folder: Folder, name: str, columns: Sequence[str], notes: list[str], places: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """These columns, as far as the file has them, of these rows; none where the file is missing or damaged."""
    try:
        with folder.open(name) as stream:
            file = pq.ParquetFile(stream)
            there = [column for column in columns if column in file.schema_arrow.names]
            table = file.read(columns=there)
    except FileNotFoundError:
        notes.append(f"{name} is not there: its episodes are left out.")
        return []
    except (pa.ArrowException, OSError):
        notes.append(f"{name} cannot be read: its episodes are left out.")
        return []
    if "question_id" not in there:
        notes.append(f"{name} names no questions: its episodes are left out.")
        return []
    return (table if places is None else table.take(pa.array(places, pa.int64()))).to_pylist()


def _trajectory(row: Mapping[str, Any]) -> Trajectory | None:
    try:
        return trajectory_from(json.loads(row.get("record") or ""))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


def _grammar(run: RunFacts) -> Grammar:
    """Of the protocol that the run was played under."""
    told = run.results.get("preset") or run.settings.get("agent.preset")
    return PRESETS[told].grammar if told in PRESETS else Grammar()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
