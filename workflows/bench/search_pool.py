"""A step of load on the pool of search workers: how soon it grows, to how many, and how soon it is small again."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.pool import PoolStanding, Searchers
from actors.search.quota.settings import QuotaSettings
from actors.search.settings import PoolSettings, RetrySettings
from workflows.bench.search_stage import NoImages, running_provider, serper_settings, slow_provider

CALLERS = 300
PER_ACTOR = 16
LOOK_EVERY_S = 0.25
GROWN_WITHIN_S = 15.0  # of the step: what the p95 said in this time decides how many workers there are to be
SMALL_AGAIN_WITHIN_S = 75.0  # how long is waited for it


@dataclass(frozen=True)
class PoolRun:
    """`target`: ceil(min(demand, quota x p95) / per_actor), by the median of the p95 that the workers told in the first
    `GROWN_WITHIN_S`; times in seconds."""

    callers: int
    calls: int
    failed: int
    p95_s: float
    target: int
    most: int
    up_s: float | None  # from the step on until `target` workers serve
    down_s: float | None  # from the end of the load on until one does
    turns: int  # changes of direction


async def follow_a_step(seconds: float, per_second: float, burst: int) -> PoolRun:
    """Callers come at once, ask for `seconds` and go; a worker is killed (SIGKILL) half way. Ray must be running."""
    quota = QuotaSettings(per_second=per_second, burst=burst)
    pool = PoolSettings(min=1, max=8, per_actor=PER_ACTOR)
    async with running_provider(slow_provider(per_second, burst)) as url:
        settings = replace(serper_settings(url, quota), pool=pool, retry=RetrySettings(retries=4))
        settings = replace(settings, text=[replace(settings.text[0], name=f"bench-pool-{os.getpid()}")])
        searchers = Searchers(settings, NoImages())
        try:
            await searchers.ready()
            return await _followed(searchers, seconds, per_second)
        finally:
            await searchers.close()


async def _followed(searchers: Searchers, seconds: float, per_second: float) -> PoolRun:
    began, outcomes = time.monotonic(), Counter[Outcome]()
    seen: list[tuple[float, PoolStanding]] = []

    async def caller(n: int) -> None:
        i = 0
        while time.monotonic() < began + seconds:
            request = ToolRequest(Tool.TEXT_SEARCH, f"caller {n} asks {i}")
            result = await searchers.toolbox.call(request, deadline=time.monotonic() + 120)
            outcomes[result.outcome] += 1
            i += 1

    async def watcher() -> None:
        while True:
            seen.append((time.monotonic() - began, await searchers.standing()))
            await asyncio.sleep(LOOK_EVERY_S)

    async def killer() -> None:
        await asyncio.sleep(seconds / 2)
        worker: Any = (await searchers.members())[0]
        os.kill(await worker.pid.remote(), signal.SIGKILL)

    watching = asyncio.create_task(watcher())
    await asyncio.gather(killer(), *(caller(n) for n in range(CALLERS)))
    ended = time.monotonic() - began
    while time.monotonic() - began < ended + SMALL_AGAIN_WITHIN_S and seen[-1][1].serving > 1:
        await asyncio.sleep(LOOK_EVERY_S)
    watching.cancel()
    told = [load.p95_s for at, standing in seen if at < GROWN_WITHIN_S for load in standing.load.endpoints]
    p95 = median([p95_s for p95_s in told if p95_s] or [0.0])
    target = max(1, min(8, math.ceil(min(CALLERS, per_second * p95) / PER_ACTOR)))
    return PoolRun(
        callers=CALLERS,
        calls=outcomes.total(),
        failed=outcomes.total() - outcomes[Outcome.OK],
        p95_s=p95,
        target=target,
        most=max(standing.serving for _, standing in seen),
        up_s=next((at for at, standing in seen if standing.serving >= target), None),
        down_s=next((at - ended for at, standing in seen if at > ended and standing.serving == 1), None),
        turns=_turns([standing.target for _, standing in seen]),
    )


def _turns(targets: list[int]) -> int:
    """How often a rise follows a fall or a fall a rise."""
    steps = [b - a for a, b in pairwise(targets) if a != b]
    return sum((a > 0) != (b > 0) for a, b in pairwise(steps))
