"""The parts of the service's bench, each against a service that runs: what is asked of it, and when it is hurt.

Always true: what asks is one event loop; what blocks (commands, looks at processes) is in threads beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from workflows.bench import serve_figures as figures
from workflows.bench.serve_exchange import Outcome
from workflows.bench.serve_figures import Death, SidePass, Swap, quantile, rate
from workflows.bench.serve_form import ServeForm
from workflows.bench.serve_load import GRACE_S, ChatClient, Crowd, crowded, offered, one_by_one
from workflows.bench.serve_service import Service

ALONE_S = 60.0  # of a request that is asked alone, or in a crowd that the service has room for
DEADLINE_S = 30.0  # of a request in an overload
DEATH_S = 120.0  # of a request while agents die: it may wait for the next one
SETTLE_S = 4.0  # of load, before and after weights change or an agent dies
LOOK_S = 0.25
LOOKS = 3  # at what agents play, right before one of them dies
MOST = 4096  # requests under way that the bench holds
Bodies = Callable[[str, bool, float], Sequence[bytes]]  # (model, stream, seconds of a request) -> its requests


@dataclass(frozen=True)
class Asking:
    """Whom the bench asks and what: bodies of the questions asked alone, of those to warm up, and of a crowd's."""

    url: str
    key: str
    form: ServeForm
    alone: Bodies
    warm: Bodies
    crowd: Bodies


async def service_pass(asking: Asking) -> SidePass:
    """One side of the overhead. Raises `RuntimeError` when a question was not answered."""
    form = asking.form
    async with ChatClient(asking.url, ALONE_S, asking.key) as client:
        model = await client.model()
        await one_by_one(client, asking.warm(model, False, ALONE_S))
        alone = await one_by_one(client, asking.alone(model, False, ALONE_S))
        began = time.monotonic()
        crowd = await crowded(client, asking.alone(model, False, ALONE_S), form.clients, form.crowd_s)
    if lost := [one for one in (*alone, *crowd) if one.outcome is not Outcome.ANSWERED]:
        raise RuntimeError(f"{len(lost)} questions were {lost[0].outcome}: {lost[0].problem or lost[0].status}")
    per_s = rate([one.ended for one in crowd], began, form.crowd_s)
    return SidePass(tuple(one.seconds for one in alone), tuple(one.sampled for one in alone), per_s)


async def steps(asking: Asking) -> dict[str, Any]:
    """How soon a step is told, and how often text."""
    form = asking.form
    async with ChatClient(asking.url, ALONE_S, asking.key) as client:
        model = await client.model()
        await one_by_one(client, asking.warm(model, True, ALONE_S))
        alone = await one_by_one(client, asking.alone(model, True, ALONE_S))
        crowd = await crowded(client, asking.crowd(model, True, ALONE_S), form.clients, form.crowd_s)
    return figures.steps(alone, crowd)


async def overload(asking: Asking, service: Service | None) -> dict[str, Any]:
    """The capacity, then twice as much as that."""
    form = asking.form
    async with ChatClient(asking.url, DEADLINE_S, asking.key) as client:
        model = await client.model()
        bodies = asking.crowd(model, True, DEADLINE_S)
        levels, p99s = await _levels(client, bodies, form)
        at = figures.capacity(levels)
        agents = None if service is None else await asyncio.to_thread(service.agents)
        memory: list[tuple[float, Mapping[str, float]]] = []
        watch = asyncio.create_task(_watched(service, form.memory_every_s, memory)) if service is not None else None
        try:
            load, unsent = await offered(client, bodies, 2 * levels[at], 60 * form.minutes, MOST)
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        after = None if service is None else await asyncio.to_thread(service.agents)
    told = figures.overload(
        load, p99s[at], None if service is None else memory, deadline_s=DEADLINE_S + GRACE_S, unsent=unsent
    )
    if agents != after:
        told["problems"].append(f"the agents were replaced under load: {agents} before, {after} after")
    by_clients = {str(clients): per_s for clients, per_s in levels.items()}
    return {"levels": by_clients, "capacity_clients": at, "offered_per_s": 2 * levels[at], **told}


async def _levels(
    client: ChatClient, bodies: Sequence[bytes], form: ServeForm
) -> tuple[dict[int, float], dict[int, float | None]]:
    """Answers a second, and the p99 of their seconds, by the number of clients."""
    levels: dict[int, float] = {}
    p99s: dict[int, float | None] = {}
    for clients in sorted({max(1, form.clients // 4), max(1, form.clients // 2), form.clients, 2 * form.clients}):
        began = time.monotonic()
        answered = [
            one
            for one in await crowded(client, bodies, clients, form.crowd_s)
            if one.outcome is Outcome.ANSWERED
        ]  # fmt: skip
        levels[clients] = rate([one.ended for one in answered], began, form.crowd_s)
        p99s[clients] = quantile([one.seconds for one in answered], 0.99)
    if not any(levels.values()):
        raise RuntimeError("no question was answered, so that there is no capacity to speak of")
    return levels, p99s


async def _watched(service: Service, every_s: float, memory: list[tuple[float, Mapping[str, float]]]) -> None:
    began = time.monotonic()
    while True:
        held = await asyncio.to_thread(service.memory_mib)
        memory.append((time.monotonic() - began, held))
        await asyncio.sleep(every_s)


async def swap(asking: Asking, service: Service, checkpoints: Sequence[str]) -> dict[str, Any]:
    """New weights again and again, while half the clients ask."""
    form = asking.form
    made: list[Swap] = []
    async with ChatClient(asking.url, ALONE_S, asking.key) as client:
        bodies = asking.crowd(await client.model(), True, ALONE_S)
        async with Crowd(client, bodies, max(1, form.clients // 2)) as crowd:
            await asyncio.sleep(SETTLE_S)
            for checkpoint in itertools.islice(itertools.cycle(checkpoints), form.times):
                began = time.monotonic()
                version = await asyncio.to_thread(service.update, checkpoint)
                made.append(Swap(began, time.monotonic(), version))
                await asyncio.sleep(SETTLE_S)
    return figures.swaps(crowd.exchanges, made)


async def kill(asking: Asking, service: Service, agents: int) -> dict[str, Any]:
    """SIGKILL to an agent again and again, while half the clients ask."""
    form = asking.form
    suffered: list[Death] = []
    async with ChatClient(asking.url, DEATH_S, asking.key) as client:
        bodies = asking.crowd(await client.model(), True, DEATH_S)
        async with Crowd(client, bodies, max(1, form.clients // 2)) as crowd:
            for _ in range(form.times):
                await asyncio.sleep(SETTLE_S)
                suffered.append(await _death(service, agents))
                if suffered[-1].whole_at is None:
                    break
            await asyncio.sleep(SETTLE_S)
    return figures.deaths(crowd.exchanges, suffered, agents)


async def _death(service: Service, agents: int) -> Death:
    """Kill the one with the least pid, and wait until the service is whole, or for as long as a request may take."""
    there = await asyncio.to_thread(service.agents)
    if len(there) < agents:
        raise RuntimeError(f"there are {len(there)} agents, not {agents}")
    pid = min(there)
    held = 0
    for _ in range(LOOKS):
        held = max(held, await asyncio.to_thread(service.most_episodes))
        await asyncio.sleep(LOOK_S)
    service.kill(pid)
    at = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(DEATH_S):
            while not await asyncio.to_thread(service.whole, agents, (pid,)):
                await asyncio.sleep(LOOK_S)
            return Death(at, time.monotonic(), held)
    return Death(at, None, held)
