"""The agent of the service: one engine, and the episodes on it, as a replica of Ray Serve.

    play(order)   -> reports as they happen ... -> {"type": "end", ...}   or it raises `ApiError`
    answer(order) -> the end alone

Always true: who stops listening ends the episode, its turn in the engine and its search; new weights come under running
episodes, which go on; a replica that started late has the same weights as the others, because they come by
`reconfigure`; weights that cannot be taken leave those that run.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import PRESETS, Preset
from actors.agent.seams import Clock, Generation, GenerationFailed, Generator, Sampling, Toolbox
from actors.agent.trajectory import IntArray, Question, Segment
from actors.model.load import local_model, parameter_shapes
from actors.model.renderer import ChatRenderer, load_renderer
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings
from cluster.collector import collect_rarely
from cluster.errors import UserError
from workflows.evaluate.policies import Direct
from workflows.serve import errors
from workflows.serve.answers import Answered
from workflows.serve.chat import Bounds
from workflows.serve.limits import BoundedToolbox, reached_by
from workflows.serve.memory_images import MemoryImages
from workflows.serve.orders import Order, Standing
from workflows.serve.reports import TEXTS, Report, Reporter
from workflows.serve.thumbnails import ShowingToolbox
from workflows.serve.toolbox import ServeToolbox

_log = logging.getLogger(__name__)
WARM_PIXELS, WARM_S = 112, 60.0  # of the picture that an engine is shown before anybody asks; for it to have seen it


@dataclass(frozen=True)
class AgentPlan:
    """What a replica is made of, weights apart."""

    engine: EngineSettings
    preset: str  # a key of PRESETS
    limits: Limits
    reports_per_second: float = 20.0  # of one episode: text that comes faster is put together
    images_mib: int = 256


class Agent:
    """Becomes a deployment in app.py. `search`: the handle of the search deployment."""

    def __init__(self, plan: AgentPlan, search: Any) -> None:
        self._plan, self._search = plan, search
        self._preset = PRESETS[plan.preset]
        self._images = MemoryImages(plan.images_mib << 20)
        self._engine: Engine | None = None
        self._renderer: ChatRenderer | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._checkpoint = ""
        self._refused: int | None = None
        self._episodes = 0

    async def reconfigure(self, weights: dict[str, Any]) -> None:
        """Run the weights at `checkpoint` as `version`: at the start, and whenever they change.

        Raises for those to start with. Later ones that are not there, or of another model, are refused: Serve would
        take an exception for a broken replica, and replace it by one that cannot start.
        """
        checkpoint, version = str(weights["checkpoint"]), int(weights["version"])
        if self._engine is None:
            await self._start(checkpoint, version)
            return
        try:
            await self._swap(self._engine, checkpoint, version)
        except (UserError, OSError) as error:
            self._refused = version
            _log.error("version %d is refused: %s", version, error)

    async def check_health(self) -> None:
        """Raise when the engine is broken or hangs: Serve then replaces this replica."""
        if self._engine is None or not await self._engine.answers():
            raise RuntimeError("the engine does not answer")

    async def standing(self) -> Standing:
        """What runs here."""
        version = -1 if self._engine is None else int(self._engine.version)
        healthy = self._engine is not None and self._engine.healthy()
        return Standing(version, self._checkpoint, healthy, self._episodes, self._refused)

    async def answer(self, order: Order) -> Answered:
        """The end of an episode that nobody watches. Raises `ApiError`."""
        self._episodes += 1
        try:
            return await self._episode(order, None)
        finally:
            self._episodes -= 1

    async def play(self, order: Order) -> AsyncGenerator[list[Report], None]:
        """The reports of an episode, those of a moment together; the last is of type "end". Raises `ApiError`."""
        reports: asyncio.Queue[Report] = asyncio.Queue()  # bounded by what the episode's turns can write
        urgent = asyncio.Event()  # text waits for more of it; a step and the end wait for nothing

        def send(report: Report) -> None:
            reports.put_nowait(report)
            if report["type"] not in TEXTS:
                urgent.set()

        episode = asyncio.create_task(self._episode(order, send))
        episode.add_done_callback(lambda _: send({"type": "ended"}))
        pause_s, next_at = 1 / self._plan.reports_per_second, 0.0
        self._episodes += 1
        try:
            while True:
                batch = [await reports.get()]
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, next_at - time.monotonic())):
                        await urgent.wait()
                urgent.clear()
                while not reports.empty():
                    batch.append(reports.get_nowait())
                ended = batch[-1]["type"] == "ended"
                told = joined(batch[:-1] if ended else batch)
                if ended:
                    yield [*told, {"type": "end", "choice": episode.result()}]
                    return
                yield told
                next_at = time.monotonic() + pause_s
        finally:
            self._episodes -= 1
            episode.cancel()
            await asyncio.gather(episode, return_exceptions=True)

    async def _episode(self, order: Order, send: Callable[[Report], None] | None) -> Answered:
        engine, renderer = self._running()
        bounds = replace(order.bounds, seconds=max(0.0, order.until - time.time()))
        refs = [self._images.keep(ref, data) for ref, data in order.pictures]
        with self._images.holding(refs) as held:
            toolbox: Toolbox = ServeToolbox(self._search, order.caller, self._images, held)
            thumbnails = None
            if order.thumbnails:
                toolbox = showing = ShowingToolbox(toolbox, self._images.get)
                thumbnails = showing.documents
            reporter = Reporter(send, order.stop, thumbnails)
            bounded_toolbox = BoundedToolbox(toolbox, bounds, search=order.search)
            generator: Generator = WatchedEngine(engine, renderer, reporter.wrote) if send else engine
            trajectory = await run_episode(
                Question(order.identity, order.text, tuple(refs)),
                order.index,
                bounded(self._preset, bounds),
                generator if order.search else Direct(generator, renderer),
                renderer,
                bounded_toolbox,
                sampling=order.sampling,
                limits=within(self._plan.limits, bounds),
                clock=time.monotonic,
                observer=reporter,
                max_images=self._plan.engine.images_per_prompt,
            )
        return reporter.conclude(trajectory, reached_by(trajectory, bounded_toolbox, bounds))

    def _running(self) -> tuple[Engine, ChatRenderer]:
        if self._engine is None or self._renderer is None or not self._engine.healthy():
            raise errors.unavailable("The engine is being replaced: ask again.", 5.0)
        return self._engine, self._renderer

    async def _start(self, checkpoint: str, version: int) -> None:
        model = await asyncio.to_thread(local_model, checkpoint)
        self._shapes = await asyncio.to_thread(parameter_shapes, model)
        self._renderer = await asyncio.to_thread(load_renderer, model, self._preset.system)
        engine = Engine(model, self._plan.engine, self._renderer, self._images, version=version)
        await engine.start()
        await self._warm(engine, self._renderer)
        self._engine, self._checkpoint = engine, checkpoint
        collect_rarely()

    async def _warm(self, engine: Engine, renderer: ChatRenderer) -> None:
        """Show the engine a picture, so that what is loaded at the first one (3 s of it) keeps no client waiting."""
        blank = io.BytesIO()
        Image.new("RGB", (WARM_PIXELS, WARM_PIXELS)).save(blank, "PNG")
        shown = self._images.put(blank.getvalue())
        with self._images.holding([shown]):
            segments = [renderer.open(self._preset.open("?", 1), [shown])]
            await engine.generate(segments, Sampling(0.0, max_tokens=1), deadline=time.monotonic() + WARM_S)

    async def _swap(self, engine: Engine, checkpoint: str, version: int) -> None:
        if int(engine.version) == version:
            if checkpoint != self._checkpoint:
                raise UserError(f"version {version} runs already, and its weights are {self._checkpoint}: count on")
            return
        model: Path = await asyncio.to_thread(local_model, checkpoint)
        if await asyncio.to_thread(parameter_shapes, model) != self._shapes:
            raise UserError(f"the model at {checkpoint} has other weights than the one that runs: start it anew")
        try:
            await engine.update(str(model), version)
        except GenerationFailed:  # it is broken now, and `check_health` says so
            _log.exception("loading version %d broke the engine", version)
            return
        self._checkpoint, self._refused = checkpoint, None
        _log.info("version %d runs: %s", version, checkpoint)

    async def __del__(self) -> None:
        if self._engine is not None:
            await self._engine.close()


class WatchedEngine:
    """An `agent.seams.Generator` whose turns are told while they are written, a few times a second: to decode a turn
    takes the longer the more there is of it. What is left when it ends, the episode's observer is told."""

    def __init__(
        self,
        engine: Engine,
        renderer: ChatRenderer,
        wrote: Callable[[str], None],
        every_s: float = 0.025,
        clock: Clock = time.monotonic,
    ) -> None:
        self._engine, self._renderer, self._wrote = engine, renderer, wrote
        self._every_s, self._clock, self._next_at = every_s, clock, 0.0

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        return await self._engine.generate(segments, sampling, deadline=deadline, told=self._told)

    def _told(self, token_ids: IntArray) -> None:
        if (now := self._clock()) >= self._next_at:
            self._next_at = now + self._every_s
            self._wrote(self._renderer.decode(token_ids))


def joined(reports: Sequence[Report]) -> list[Report]:
    """The same with neighbouring texts of one kind as one."""
    told: list[Report] = []
    for report in reports:
        if told and report["type"] in TEXTS and told[-1]["type"] == report["type"]:
            told[-1] = {**told[-1], "text": told[-1]["text"] + report["text"]}
        else:
            told.append(report)
    return told


def bounded(preset: Preset, bounds: Bounds) -> Preset:
    """The protocol with no more turns than the request allows."""
    return preset if bounds.turns is None else replace(preset, max_turns=min(preset.max_turns, bounds.turns))


def within(limits: Limits, bounds: Bounds) -> Limits:
    """The episode's limits with no more time than the request has."""
    return replace(limits, episode_timeout_s=min(limits.episode_timeout_s, bounds.seconds))
