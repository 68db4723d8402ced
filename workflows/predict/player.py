"""One question after the other, many at a time: pictures, episode, and the row on storage before it counts as done.

Always true: a row ends in exactly one way.
- `SAVED`: it is written, also when the policy or the data failed;
- `SPOILT`: the infrastructure failed it as often as it was tried; not written, so the next start plays it again;
- `REFUSED`: a tool says that a person has to do something (a budget, a key); not written;
- `BROKEN`: there is no engine, or no storage, any more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import Preset
from actors.agent.seams import Clock, Generator, ImageRefused, Renderer, Sampling, Toolbox
from actors.agent.trajectory import Failure, ImageRef, Question, ToolRequest, ToolResult, Trajectory
from cluster.storage_failures import reason_of
from workflows.predict.answers import ROW, answer_row, unasked
from workflows.predict.parts import PartWriter
from workflows.predict.pictures import BadPicture, PictureReader, PictureUnread
from workflows.serve.memory_images import MemoryImages

LONGEST_WAIT_S = 30.0  # before a row is played again


class Ended(StrEnum):
    """How a row ended."""

    SAVED = "saved"
    SPOILT = "spoilt"
    REFUSED = "refused"
    BROKEN = "broken"


class EngineBroken(RuntimeError):
    """There is no engine any more, and it is not started again."""


class LastingEngine(Generator, Protocol):
    """A `Generator` that can be mended."""

    async def mend(self) -> None:
        """Return when it works. Raise `EngineBroken`."""
        ...


@dataclass(frozen=True)
class Rules:
    """How every question is played."""

    preset: Preset
    limits: Limits
    temperature: float
    max_images: int  # in one episode
    concurrency: int  # episodes at a time
    retries: int
    weights_version: str


class Player:
    """For one event loop."""

    def __init__(
        self,
        rules: Rules,
        engine: LastingEngine,
        renderer: Renderer,
        toolbox: Toolbox,
        images: MemoryImages,
        pictures: PictureReader,
        parts: PartWriter,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`images`: what `engine` and `toolbox` look at."""
        self._rules, self._engine, self._renderer, self._toolbox = rules, engine, renderer, toolbox
        self._images, self._pictures, self._parts = images, pictures, parts
        self._clock, self._sleep = clock, sleep
        self._places = asyncio.Semaphore(rules.concurrency)

    async def play(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of `ASKED`; for each: its number, how it `ended`, its `failure`, its `problem`, its `searches` and its
        `cost_usd`."""
        return list(await asyncio.gather(*(self._row(row) for row in rows)))

    async def _row(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        async with self._places:
            attempts = 1
            trajectory = await self._attempt(asked)
            while trajectory.failure is Failure.INFRA and attempts <= self._rules.retries:
                await self._sleep(random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, 2.0**attempts))
                try:
                    await self._engine.mend()
                except EngineBroken as error:
                    return _told(asked, trajectory, Ended.BROKEN, str(error))
                trajectory = await self._attempt(asked)
                attempts += 1
        if trajectory.refused:  # also when the policy answered without: with a budget it would have seen more
            return _told(asked, trajectory, Ended.REFUSED, trajectory.refused)
        if trajectory.failure is Failure.INFRA:
            return _told(asked, trajectory, Ended.SPOILT, trajectory.problem)
        try:
            await self._parts.save(answer_row(asked, trajectory, attempts, self._rules.weights_version))
        except OSError as error:
            return _told(asked, trajectory, Ended.BROKEN, f"answers cannot be written: {reason_of(error)}")
        return _told(asked, trajectory, Ended.SAVED, trajectory.problem)

    async def _attempt(self, asked: Mapping[str, Any]) -> Trajectory:
        if asked["problem"]:
            return unasked(asked, asked["problem"], Failure.DATA)
        with self._images.holding(()) as held:
            try:
                refs = [await self._picture(one, held) for one in asked["pictures"]]
            except (BadPicture, ImageRefused) as error:
                return unasked(asked, str(error), Failure.DATA)
            except PictureUnread as error:
                return unasked(asked, str(error), Failure.INFRA)
            return await self._episode(Question(asked["id"], asked["question"], tuple(refs)), held)

    async def _picture(self, picture: Mapping[str, Any], held: Counter[str]) -> ImageRef:
        data = await self._pictures.read(picture)
        ref = await asyncio.to_thread(self._images.put, data)
        self._images.hold(held, ref)
        return ref

    async def _episode(self, question: Question, held: Counter[str]) -> Trajectory:
        limits = self._rules.limits
        return await run_episode(
            question,
            0,
            self._rules.preset,
            self._engine,
            self._renderer,
            _Holding(self._toolbox, self._images, held),
            sampling=Sampling(temperature=self._rules.temperature, max_tokens=limits.max_turn_tokens),
            limits=limits,
            clock=self._clock,
            max_images=self._rules.max_images,
        )


class _Holding:
    """A toolbox whose pictures stay as long as the episode that was shown them."""

    def __init__(self, toolbox: Toolbox, images: MemoryImages, held: Counter[str]) -> None:
        self._toolbox, self._images, self._held = toolbox, images, held

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        result = await self._toolbox.call(request, deadline=deadline)
        for ref in result.images:
            self._images.hold(self._held, ref)
        return result


def _told(asked: Mapping[str, Any], trajectory: Trajectory, ended: Ended, problem: str) -> dict[str, Any]:
    return {
        ROW: asked["row"],
        "ended": ended.value,
        "failure": trajectory.failure.value,
        "problem": problem,
        "searches": trajectory.searches,
        "cost_usd": sum(call.result.cost_usd for call in trajectory.tool_calls),
    }
