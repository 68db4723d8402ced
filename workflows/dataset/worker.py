"""One actor of the pipeline: units of a source in, rows out; a teacher's episodes are played here, many at once.

Always true: every question that a unit holds leaves as exactly one row, kept or with the cause why not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.agent.episode import run_episode
from actors.agent.seams import ImageMissing, ImageRefused, Sampling
from actors.agent.trajectory import Question, Trajectory
from workflows.dataset.checks import fault_of
from workflows.dataset.schema import CONVERSATIONS, QUESTIONS, conversation_row, question_row
from workflows.dataset.source import Candidate, Dropped, Part, source_of
from workflows.run_folder import RunFolder

if TYPE_CHECKING:
    from actors.search.gateway import Gateway
    from workflows.settings import Settings

# of the pipeline alone, not written out: which row, the cause why it is dropped ("" when kept), and words
VERDICT = [("key", pa.string()), ("dropped", pa.string()), ("detail", pa.string())]
AT_ONCE = 32  # episodes of one actor


@dataclass(frozen=True)
class Plan:
    """What every actor must know."""

    settings: Settings
    part: Part
    folder: str  # the run's
    model: str  # folder of the base model, whose tokens the conversations are written in; "" for bare questions


class DatasetWorker:
    """The callable class that Ray Data's actor pool makes once per actor."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._images = RunFolder.at(plan.folder).images()
        self._source = source_of(plan.settings)
        self._schema = pa.schema([*columns_of(plan.part), *VERDICT])
        self._loop = asyncio.new_event_loop()
        self._playing = asyncio.Semaphore(AT_ONCE)
        if plan.part.taught:
            from actors.model.load import local_model
            from actors.model.renderer import load_renderer

            preset = plan.settings.agent.protocol
            self._renderer = load_renderer(local_model(plan.settings.pictures.on(plan.model)), preset.system)
            self._gateways: dict[str, Gateway] = {}

    def __call__(self, units: pa.Table) -> pa.Table:
        """`units` has one column `unit` of JSON; rows come back in the order of the units."""
        rows = self._loop.run_until_complete(self._rows([json.loads(unit) for unit in units["unit"].to_pylist()]))
        return pa.Table.from_pylist(rows, schema=self._schema)

    async def _rows(self, units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[Candidate | Dropped] = []
        keys: list[str] = []
        for unit in units:
            digest = hashlib.sha1(json.dumps(unit, sort_keys=True).encode()).hexdigest()
            for i, item in enumerate(self._source.read(unit, self._images)):
                found.append(item)
                keys.append(f"{digest}-{i}")
        rows = await asyncio.gather(*(self._row(item) for item in found))
        return [{**row, "key": key} for row, key in zip(rows, keys, strict=True)]

    async def _row(self, item: Candidate | Dropped) -> dict[str, Any]:
        if isinstance(item, Dropped):
            return {"data_id": item.where, "dropped": item.cause, "detail": item.detail}
        question = item.question
        try:
            if not self._plan.part.taught:
                return {**question_row(question, self._pictures(question)), "dropped": "", "detail": ""}
            if item.teacher is None:
                return {"data_id": question.id, "dropped": "no_teacher", "detail": "nobody can play this question"}
            trajectory = await self._play(item)
            row = conversation_row(question, self._pictures(question), trajectory)
        except (ImageMissing, ImageRefused) as error:
            return {"data_id": question.id, "dropped": "bad_image", "detail": str(error)}
        fault = fault_of(question, trajectory)
        return {**row, "dropped": fault, "detail": _told(trajectory, question) if fault else ""}

    async def _play(self, item: Candidate) -> Trajectory:
        assert item.teacher is not None
        agent = self._plan.settings.agent
        async with self._playing:
            return await run_episode(
                item.question,
                0,
                agent.protocol,
                item.teacher(self._renderer),
                self._renderer,
                self._gateway(item),
                sampling=Sampling(max_tokens=agent.limits.max_turn_tokens),
                limits=agent.limits,
                clock=time.monotonic,
                max_images=self._plan.settings.engine.images_per_prompt,
            )

    def _gateway(self, item: Candidate) -> Gateway:
        """One for all candidates that are played with the same tools."""
        from actors.search.build import build_gateway

        search = item.search or self._plan.settings.search
        key = repr(search)
        if key not in self._gateways:
            self._gateways[key] = build_gateway(search, self._images)
        return self._gateways[key]

    def _pictures(self, question: Question) -> list[bytes | None]:
        if not self._plan.settings.dataset.embed_images:
            return [None for _ in question.images]
        return [self._images.get(ref) for ref in question.images]


def columns_of(part: Part) -> pa.Schema:
    """What is written of a part."""
    return CONVERSATIONS if part.taught else QUESTIONS


def _told(trajectory: Trajectory, question: Question) -> str:
    said = trajectory.answer or trajectory.problem or trajectory.ending.value
    return f"{question.kind}: {question.text!r} was answered {said!r}, right is {' | '.join(question.answers)!r}"
