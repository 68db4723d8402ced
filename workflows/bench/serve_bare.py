"""The bare side: the same questions to the same episode loop, with nothing between it and who asks.

    run_episode  over  Engine + gateway     in one process of its own, as `mmsearch ask` plays it

It has the engine's settings, threads and niceness of a service's agent; its pictures lie in its store already.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question, Trajectory
from cluster.errors import RunBroken
from workflows.bench.serve_figures import SidePass, rate

STARTS_WITHIN_S = 120.0
CLOSE_S = 30.0  # for the engine to stop; after that its processes are killed


@dataclass(frozen=True)
class BarePlan:
    """What is played. `model`: a folder; `seconds`: of many at once."""

    settings: Any
    model: str
    warm: tuple[Question, ...]
    questions: tuple[Question, ...]
    clients: int
    seconds: float
    niceness: int


def bare_pass(plan: BarePlan) -> SidePass:
    """Play it in a process of its own, from the engine's start to its end. Raises `RunBroken`."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(far, plan))
    process.start()
    far.close()
    try:
        longest = STARTS_WITHIN_S + 10 * plan.seconds + 5.0 * len(plan.questions)
        if not near.poll(longest):
            raise RunBroken(f"The bare episodes did not end within {longest:.0f} s.")
        answer = near.recv()
    except EOFError:
        raise RunBroken("The process of the bare episodes died.") from None
    finally:
        process.join(CLOSE_S)
        if process.is_alive():
            _kill(process.pid)
            process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _kill(pid: int | None) -> None:
    import psutil

    root = psutil.Process(pid)
    for one in [*root.children(recursive=True), root]:
        one.kill()


def _serve(pipe: Connection, plan: BarePlan) -> None:
    """The process."""
    from cluster.runtime import environment

    os.environ.update(environment(plan.settings.cluster))  # read by torch and vLLM when they are imported
    os.nice(max(0, plan.niceness - os.nice(0)))
    try:
        pipe.send(asyncio.run(_played(plan)))
    except Exception as error:
        pipe.send(RunBroken(f"The bare episodes ended with {type(error).__name__}: {error}"))


async def _played(plan: BarePlan) -> SidePass:
    from actors.agent.episode import run_episode
    from actors.model.renderer import load_renderer
    from actors.sampler.engine import Engine
    from actors.search.build import build_gateway
    from cluster.collector import collect_rarely
    from workflows.run_folder import RunFolder

    settings = plan.settings
    images = RunFolder(settings.run.folder).images()
    preset = settings.agent.protocol
    renderer = load_renderer(plan.model, preset.system)
    gateway = build_gateway(settings.search, images)
    engine = Engine(plan.model, settings.engine, renderer, images)
    await gateway.open()
    await engine.start()
    collect_rarely()  # as an agent of the service

    async def play(question: Question) -> Trajectory:
        trajectory = await run_episode(
            replace(question, answers=()),
            0,
            preset,
            engine,
            renderer,
            gateway,
            sampling=Sampling(temperature=0.0, max_tokens=settings.agent.limits.max_turn_tokens),
            limits=settings.agent.limits,
            clock=time.monotonic,
            max_images=settings.engine.images_per_prompt,
        )
        if trajectory.failure in (Failure.INFRA, Failure.DATA):
            raise RunBroken(f"an episode failed: {trajectory.problem}")
        return trajectory

    try:
        return await _both(play, plan)
    finally:
        await engine.close()
        await gateway.close()


async def _both(play: Any, plan: BarePlan) -> SidePass:
    """The questions one at a time, then by many at once."""
    for question in plan.warm:
        await play(question)
    seconds: list[float] = []
    sampled: list[int] = []
    for question in plan.questions:
        began = time.monotonic()
        trajectory = await play(question)
        seconds.append(time.monotonic() - began)
        sampled.append(trajectory.sampled_tokens)
    return SidePass(tuple(seconds), tuple(sampled), await _crowd(play, plan.questions, plan.clients, plan.seconds))


async def _crowd(play: Any, questions: Sequence[Question], clients: int, seconds: float) -> float:
    """Episodes a second while so many are played at once."""
    order = itertools.cycle(questions)
    began = time.monotonic()
    ended: list[float] = []

    async def ask_on() -> None:
        while time.monotonic() < began + seconds:
            await play(next(order))
            ended.append(time.monotonic())

    await asyncio.gather(*(ask_on() for _ in range(clients)))
    return rate(ended, began, seconds)
