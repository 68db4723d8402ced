"""What must be true of a GRPO run's folder however often its processes were killed. Reads only."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Folder
from workflows.grpo.recorder import training_steps
from workflows.grpo.settings import GrpoSettings


def problems(folder: Folder, settings: GrpoSettings) -> list[str]:
    """One sentence for each thing that is not as it must be; none for a run that is whole.

    The run must have kept the episodes of all its groups (`trajectories_per_step`).
    """
    steps = training_steps(folder)
    found = [*_numbering(steps), *_books(steps, settings.groups_per_step), *_staleness(steps, settings.max_staleness)]
    return found + _episodes(folder, steps, settings.groups_per_step, settings.group_size)


def _numbering(steps: Sequence[dict[str, Any]]) -> list[str]:
    numbers = [int(step["step"]) for step in steps]
    wrong = [] if numbers == list(range(1, len(numbers) + 1)) else [f"steps are not 1 to {len(numbers)}, each once"]
    if any(step["version"] != step["step"] for step in steps):
        wrong.append("a step made another version than its own number")
    return wrong


def _books(steps: Sequence[dict[str, Any]], groups: int) -> list[str]:
    for step in steps:
        books = {k.removeprefix("groups_total/"): v for k, v in step.items() if k.startswith("groups_total/")}
        if books.pop("admitted", 0) != sum(books.values()):
            return [f"in step {step['step']:.0f} the groups that were admitted are not those that are known of"]
        if books.get("trained") != step["step"] * groups:
            return [f"after step {step['step']:.0f} other than {groups} groups a step count as trained"]
    return []


def _staleness(steps: Sequence[dict[str, Any]], bound: int) -> list[str]:
    worst = max((step["staleness/max"] for step in steps), default=0)
    return [f"tokens of staleness {worst:.0f} were trained on, {bound} is allowed"] if worst > bound else []


def _episodes(folder: Folder, steps: Sequence[dict[str, Any]], in_step: int, siblings: int) -> list[str]:
    """Of the kept trajectories: each step has its `in_step` groups, none failed for the infrastructure, none of a group
    of `siblings` stands twice, no question is there more often than the epochs allow."""
    if not steps:
        return ["no step was made"]
    wrong: list[str] = []
    groups: Counter[str] = Counter()
    for step in steps:
        name = f"trajectories/step-{int(step['step']):06d}.parquet"
        try:
            rows = pq.read_table(pa.BufferReader(folder.read_bytes(name))).to_pylist()
        except (FileNotFoundError, pa.ArrowException):
            wrong.append(f"{name} is not there, or cannot be read")
            continue
        if any(row["failure"] not in ("none", "policy") or row["reward"] is None for row in rows):
            wrong.append(f"{name} has an episode that failed and was trained on")
        members = Counter((row["question_id"], row["sample_index"]) for row in rows)
        if any(n > 1 or index >= siblings for (_, index), n in members.items()):
            wrong.append(f"{name} has an episode twice, or more of them than a group has")
        asked = {row["question_id"] for row in rows}
        if len(asked) != in_step:
            wrong.append(f"{name} has episodes of {len(asked)} questions, a step is of {in_step}")
        groups.update(asked)
    admitted = sum(v for k, v in steps[-1].items() if k == "groups_total/admitted")
    questions = json.loads(folder.read_bytes("manifest.json"))["questions"] if folder.exists("manifest.json") else 0
    epochs = math.ceil(admitted / questions) if questions else 1
    often = {question: n for question, n in groups.items() if n > epochs}
    if often:
        wrong.append(f"{len(often)} questions were trained more often than {epochs} epochs allow")
    return wrong
