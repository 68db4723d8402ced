"""RolloutSampler: whole episodes on one engine, as a Ray actor.

Every episode is a coroutine of its own and waits for nobody: while one waits for a tool, the engine decodes the
others. The actor gives back (summary, trajectory) as two objects, so that whoever asked owns the payload and this
process may die without losing finished work.

Always true: an episode always ends as a trajectory, also when the engine or storage failed (`failure=infra`), when its
question is bad (`data`) or when it was cancelled; only finished or policy-failed episodes are scored; an infrastructure
failure while scoring masks the episode, it never becomes a reward of 0; a question that cannot be scored drops its
group.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Set
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import PRESETS, Preset
from actors.agent.seams import Generator, ImageStore, Renderer, Sampling, ScoringFailed, Toolbox
from actors.agent.trajectory import Ending, Failure, Question, RewardParts, Summary, Trajectory
from actors.model.load import local_model, parameter_shapes
from actors.model.renderer import ChatRenderer, load_renderer
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings
from actors.weights.manifest import WeightMismatch, WeightsMissed, WeightTicket, tensor_slices
from actors.weights.receiver import Receiver
from cluster.collector import collect_rarely
from cluster.errors import UserError

_log = logging.getLogger(__name__)

PolicyFactory = Callable[[Generator, Renderer, Question], Generator]
MAX_CONCURRENCY = 4096  # calls that the actor accepts at a time; vLLM queues what it cannot run


class Scorer(Protocol):
    """Gives finished episodes their reward."""

    async def score(self, question: Question, trajectory: Trajectory) -> RewardParts:
        """Raise `ScoringFailed` when there is no reward, with whose fault that is; anything else is the world's."""
        ...


class RolloutSampler:
    """One engine and the episodes on it. All arguments survive pickling; `toolbox`, `scorer` and `images` are the
    workflow's. `version` labels the weights in `model_path`."""

    def __init__(
        self,
        model_path: str,
        engine: EngineSettings,
        preset_name: str,
        limits: Limits,
        toolbox: Toolbox,
        scorer: Scorer,
        images: ImageStore,
        version: int = 0,
    ) -> None:
        if limits.max_total_tokens > engine.max_model_len:
            raise ValueError(
                f"max_total_tokens is {limits.max_total_tokens}, but max_model_len only {engine.max_model_len}"
            )
        self._model_path = str(local_model(model_path))
        self._preset_name, self._limits, self._max_images = preset_name, limits, engine.images_per_prompt
        self._toolbox, self._scorer = toolbox, scorer
        self._renderers: dict[str, ChatRenderer] = {}
        tokens = self._renderer(_preset(preset_name))
        self._engine = Engine(self._model_path, engine, tokens, images, version=version)
        self._starting = asyncio.Lock()
        self._started = False
        self._shapes: list[dict[str, tuple[int, ...]]] = []  # of every weight, by each of its names
        self._receiver = Receiver()
        self._updating = asyncio.Lock()
        self._running: defaultdict[str, dict[asyncio.Task[Trajectory], int]] = defaultdict(dict)  # to sample indices

    async def ready(self) -> dict[str, Any]:
        """Start the engine if it has not been started; returns facts about it."""
        async with self._starting:
            if not self._started:
                began = time.monotonic()
                await self._engine.start()
                self._started = True
                collect_rarely()
                _log.info("the engine started in %.1f s", time.monotonic() - began)
        return {
            "pid": os.getpid(),
            "model": self._model_path,
            "version": int(self._engine.version),
            "healthy": self._engine.healthy(),
        }

    @ray.method(num_returns=2)
    async def run(
        self,
        question: Question,
        sample_index: int,
        sampling: Sampling,
        policy: str | None = None,
        preset_name: str | None = None,
    ) -> tuple[Summary, Trajectory]:
        """One episode from question to reward.

        `policy` names a `PolicyFactory` by dotted path ("package.module.name") that wraps the engine for this
        episode, as evaluation arms do; `preset_name` takes the place of the sampler's own preset.
        """
        task = asyncio.create_task(self._play(question, sample_index, sampling, policy, preset_name))
        self._running[question.id][task] = sample_index
        try:
            trajectory = await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            trajectory = _failed(question, sample_index, Failure.INFRA, "cancelled")
        finally:
            del self._running[question.id][task]
            if not self._running[question.id]:
                del self._running[question.id]
        return Summary.of(trajectory), trajectory

    async def update(self, ticket: WeightTicket) -> int:
        """Run the weights of `ticket` from the next token on; returns the version that runs now.

        Raise `WeightsRefused` (the old weights stay) when what lies there is not what the ticket says or not all
        that the model needs, `GenerationFailed` when loading broke the engine, and `WeightsMissed` for weights that
        are not received here but were, before this engine could.
        """
        if ticket.kind == "nccl":
            if int(self._engine.version) != ticket.version:
                raise WeightsMissed(f"version {ticket.version} was sent before it could receive")
            return ticket.version
        async with self._updating:
            with ExitStack() as held:
                names = {entry.name for entry in ticket.manifest}
                expected = await asyncio.to_thread(self._needed, names)
                folder = await asyncio.to_thread(held.enter_context, self._receiver.opened(ticket, expected))
                await self._engine.update(str(folder), ticket.version)
        return int(self._engine.version)

    async def accepts_transfer(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise `WeightMismatch` when weights of these shapes are not all that the model needs."""
        needed = await asyncio.to_thread(self._needed, shapes.keys())
        for name, shape in needed.items():
            if shapes.get(name) != shape:
                raise WeightMismatch(f"the model needs {name} of shape {shape}, what comes is {shapes.get(name)}")

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Enter the learner's group of GPUs; returns when all are in it."""
        await self._engine.join_transfer(init_info)

    async def receive_transfer(self, update_info: dict[str, Any], version: int) -> None:
        """Run the weights that the learner broadcasts meanwhile, as `version`."""
        await self._engine.receive_transfer(update_info, version)

    async def cancel(self, question_id: str, sample_index: int | None = None) -> int:
        """Abort the episode of a question that has this index, or all of them; returns how many.

        Their `run` calls return failed trajectories.
        """
        running = self._running.get(question_id, {})
        tasks = [task for task, index in running.items() if sample_index in (None, index)]
        for task in tasks:
            task.cancel()
        return len(tasks)

    async def healthy(self) -> bool:
        """Whether it can be given work: the engine runs, its weights are whole, and it does not hang."""
        return self._started and await self._engine.answers()

    async def stats(self) -> dict[str, Any]:
        """The engine's counters and how full it is (`EngineStats`, `EngineLoad`), and the episodes under way."""
        load = asdict(self._engine.load()) if self._started else {}
        return {**asdict(self._engine.stats()), **load, "episodes": sum(map(len, self._running.values()))}

    async def close(self) -> None:
        """Stop the engine's processes; call before the actor is killed."""
        await self._engine.close()
        self._receiver.close()

    async def _play(
        self,
        question: Question,
        sample_index: int,
        sampling: Sampling,
        policy: str | None,
        preset_name: str | None,
    ) -> Trajectory:
        await self.ready()
        preset = _preset(preset_name or self._preset_name)
        renderer = self._renderer(preset)
        generator: Generator = self._engine
        if policy is not None:
            generator = _named(policy)(self._engine, renderer, question)
        try:
            trajectory = await run_episode(
                question,
                sample_index,
                preset,
                generator,
                renderer,
                self._toolbox,
                sampling=sampling,
                limits=self._limits,
                clock=time.monotonic,
                max_images=self._max_images,
            )
        except Exception as error:
            _log.exception("episode %s/%d failed", question.id, sample_index)
            return _failed(question, sample_index, fault_of(error), repr(error))
        return await scored(self._scorer, question, trajectory)

    def _needed(self, names: Set[str]) -> dict[str, tuple[int, ...]]:
        """A weight that nobody published would silently stay old in the engine, so all names are asked for.

        Modules and files of one model name its weights differently; a ticket follows one of the two namings.
        """
        if not self._shapes:
            files = {name: where.shape for name, where in tensor_slices(Path(self._model_path)).items()}
            self._shapes = [parameter_shapes(self._model_path), files]
        return max(self._shapes, key=lambda naming: len(naming.keys() & names))

    def _renderer(self, preset: Preset) -> ChatRenderer:
        if preset.system not in self._renderers:
            self._renderers[preset.system] = load_renderer(self._model_path, preset.system)
        return self._renderers[preset.system]


def start_sampler(
    *arguments: Any,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    name: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    labels: dict[str, str] | None = None,
    **keywords: Any,
) -> Any:
    """A handle of a RolloutSampler actor with `RolloutSampler`'s arguments. Ray must be running.

    `labels`: of the nodes that it may be placed on, as Ray's label selectors have them; any node when not given. Its
    GPUs are always of one node.

    It never restarts by itself: a new process must load the current weights first, which the controller sees to.
    """
    options = ray.remote(RolloutSampler).options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        name=name,
        runtime_env=runtime_env,
        max_concurrency=MAX_CONCURRENCY,
        max_restarts=0,
        **({"label_selector": labels} if labels else {}),
    )
    return options.remote(*arguments, **keywords)


def fault_of(error: Exception) -> Failure:
    """Whose fault is what ended an episode from outside its own boundary.

    Storage, a process or the network that failed, and what a person can mend, is no question's. The rest is a bug or a
    bad row: it counts as the data's, so that it is not asked again, and is seen.
    """
    return Failure.INFRA if isinstance(error, OSError | RayError | UserError) else Failure.DATA


async def scored(scorer: Scorer, question: Question, trajectory: Trajectory) -> Trajectory:
    """The episode with its reward, or failed by whoever's fault it is that there is none."""
    if trajectory.failure in (Failure.INFRA, Failure.DATA):
        return trajectory
    try:
        return trajectory.scored(await scorer.score(question, trajectory))
    except Exception as error:  # whatever a judge raises: the episode itself did nothing wrong
        failure = error.failure if isinstance(error, ScoringFailed) else Failure.INFRA
        _log.warning("episode %s/%d was not scored: %r", question.id, trajectory.sample_index, error)
        problem = f"scoring failed: {error!r}"
        return replace(trajectory, ending=Ending.FAILED, failure=failure, problem=problem)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def _named(path: str) -> PolicyFactory:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _failed(question: Question, sample_index: int, failure: Failure, problem: str) -> Trajectory:
    return Trajectory(question.id, sample_index, (), (), Ending.FAILED, failure, problem=problem)
