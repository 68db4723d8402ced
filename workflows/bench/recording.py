"""The rollout side: a RolloutSampler that notes every turn, and how long its episodes were where.

It is the real path with clocks around it; their cost (a few microseconds a call) counts against the rollout.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray

from actors.agent.prompts import Preset
from actors.agent.seams import Generation, Generator, Renderer, Sampling, Toolbox
from actors.agent.trajectory import Question, RewardParts, Segment, ToolRequest, ToolResult, Trajectory
from actors.sampler.actor import MAX_CONCURRENCY, RolloutSampler, Scorer
from workflows.bench.raw import forget
from workflows.bench.replay import Turn

NOTED = "workflows.bench.recording.noted"  # the policy under which episodes are played here
PROFILED = 40  # functions shown
_turns: list[Turn] = []
_seconds: defaultdict[str, float] = defaultdict(float)  # over all episodes, by what they were doing


class BenchSampler(RolloutSampler):
    """As its parent, and it can say what it did."""

    def __init__(self, model_path: str, engine: Any, preset_name: str, limits: Any, toolbox: Toolbox, scorer: Scorer,
                 images: Any) -> None:  # fmt: skip
        super().__init__(model_path, engine, preset_name, limits, _Tools(toolbox), _Scores(scorer), images)
        self._profiler: cProfile.Profile | None = None

    async def fresh(self, profiled: bool = False) -> None:
        """Forget what was noted, and all that the engine has cached."""
        await forget(self._engine._llm)  # pyright: ignore[reportPrivateUsage]
        self._engine._pictures._cache.clear()  # pyright: ignore[reportPrivateUsage]
        _turns.clear()
        _seconds.clear()
        self._profiler = cProfile.Profile() if profiled else None
        if self._profiler:
            self._profiler.enable()

    async def noted(self) -> tuple[list[Turn], dict[str, float], str]:
        """The turns since `fresh`, seconds by what episodes were doing, and the profile of this process's loop."""
        profile = ""
        if self._profiler:
            self._profiler.disable()
            text = io.StringIO()
            profile_of = pstats.Stats(self._profiler, stream=text)
            profile_of.sort_stats("tottime").print_stats(PROFILED)
            profile_of.sort_stats("cumulative").print_stats("actors/|workflows/|ray/|async_llm", PROFILED)
            profile = text.getvalue()
        return list(_turns), dict(_seconds), profile

    async def _play(
        self, question: Question, sample_index: int, sampling: Sampling, policy: str | None, preset_name: str | None
    ) -> Trajectory:
        began = time.monotonic()
        try:
            return await super()._play(question, sample_index, sampling, policy, preset_name)
        finally:
            _seconds["episodes"] += time.monotonic() - began

    def _renderer(self, preset: Preset) -> Any:
        return _Renders(super()._renderer(preset))


def start_bench_sampler(*arguments: Any, num_cpus: float, num_gpus: float) -> Any:
    """As `actors.sampler.actor.start_sampler`."""
    options = ray.remote(BenchSampler).options(
        num_cpus=num_cpus, num_gpus=num_gpus, max_concurrency=MAX_CONCURRENCY, max_restarts=0
    )
    return options.remote(*arguments)


def noted(engine: Generator, renderer: Renderer, question: Question) -> Generator:
    """A policy factory: the engine itself, watched."""
    return _Watched(engine)


class _Watched:
    def __init__(self, engine: Generator) -> None:
        self._engine = engine

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        asked = time.monotonic()
        generation = await self._engine.generate(segments, sampling, deadline=deadline)
        answered = time.monotonic()
        _turns.append(Turn(asked, answered, tuple(segments), len(generation.token_ids)))
        _seconds["engine"] += answered - asked
        return generation


class _Tools:
    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        began = time.monotonic()
        try:
            return await self._toolbox.call(request, deadline=deadline)
        finally:
            _seconds["tools"] += time.monotonic() - began


class _Scores:
    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def score(self, question: Question, trajectory: Trajectory) -> RewardParts:
        began = time.monotonic()
        try:
            return await self._scorer.score(question, trajectory)
        finally:
            _seconds["reward"] += time.monotonic() - began


class _Renders:
    """A renderer whose work on texts is timed; it is synchronous, so this is processor time of the event loop."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    def open(self, *arguments: Any) -> Segment:
        return self._timed(self._renderer.open, arguments)

    def observe(self, *arguments: Any) -> Segment:
        return self._timed(self._renderer.observe, arguments)

    def decode(self, *arguments: Any) -> str:
        return self._timed(self._renderer.decode, arguments)

    def forbidden(self, *arguments: Any) -> bool:
        return self._timed(self._renderer.forbidden, arguments)

    @staticmethod
    def _timed(work: Any, arguments: tuple[Any, ...]) -> Any:
        began = time.monotonic()
        try:
            return work(*arguments)
        finally:
            _seconds["rendering"] += time.monotonic() - began
