"""`mmsearch bench search`: the search gateway against a provider with a quota, beside a client that retries on 429.

The provider (`search_provider.py`) is simulated and runs in a process of its own on loopback; everything on our side is
what a training run uses: SearchWorker actors, a QuotaBroker, the adapter for Serper. The plain client is what peers
ship: aiohttp, as many requests at once as there are callers up to a bound, and exponential waiting after a 429.

    quota      open loop, more offered than the quota allows, until the time is up: how much of it is used, how many 429
    broker     the same with the broker killed in the middle: what it let pass is never more than its budget
    overhead   CPU of one process per call, with many callers at once, above the bare client's
    lookups    answers from memory a second; one hundred callers of one question
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any

import aiohttp
import ray
from rich.console import Console
from rich.table import Table

from actors.agent.trajectory import Outcome, Tool, ToolRequest, ToolResult
from actors.search.build import build_gateway
from actors.search.quota.settings import BudgetSettings, QuotaSettings
from actors.search.settings import RetrySettings, SearchSettings
from cluster.errors import UserError
from workflows.bench.search_pool import PoolRun, follow_a_step
from workflows.bench.search_provider import ProviderLoad
from workflows.bench.search_stage import KEY_ENV, NoImages, running_provider, serper_settings, slow_provider

PLAIN_AT_ONCE = 128  # requests in flight of the plain client
PLAIN_RETRIES = 8


PARTS = ("quota", "broker", "pool", "overhead", "lookups")


@dataclass(frozen=True)
class SearchLoad:
    """How hard is tried."""

    seconds: float = 60.0
    # of every part that keeps the provider busy
    per_second: float = 50.0
    # the provider's quota
    burst: int = 5
    # of the quota
    offered: float = 200.0
    # calls a second
    callers: int = 1000
    # at once, where CPU is measured
    parts: tuple[str, ...] = PARTS
    # which of them


def run(settings: Any, load: SearchLoad, *, as_json: bool = False) -> None:
    """The command. Raise UserError."""
    if unknown := sorted(set(load.parts) - set(PARTS)):
        raise UserError(f"bench search has no part {', '.join(unknown)}; it has {', '.join(PARTS)}.")
    os.environ[KEY_ENV] = "loopback"
    with redirect_stdout(sys.stderr):  # Ray tells there what its workers say; standard output is the document's
        document = asyncio.run(measure(settings, load, Console(stderr=True)))
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console())


async def measure(settings: Any, load: SearchLoad, console: Console) -> dict[str, Any]:
    """All parts, as JSON takes it."""
    from cluster import runtime

    document: dict[str, Any] = {"load": load.__dict__ | {"parts": list(load.parts)}}
    if {"quota", "broker", "pool"} & set(load.parts):
        with runtime.connect(settings.cluster):
            if "quota" in load.parts:
                console.print(f"bench search: quota, twice {load.seconds:g} s", highlight=False)
                document["quota"] = {"gateway": await _quota(load), "plain": await _plain(load)}
            if "broker" in load.parts:
                console.print(f"bench search: a broker that is killed, {load.seconds / 2:g} s", highlight=False)
                document["broker"] = await _broker(load)
            if "pool" in load.parts:
                console.print(
                    f"bench search: a step of load on the pool, {load.seconds / 2:g} s and after", highlight=False
                )
                document["pool"] = asdict(await follow_a_step(load.seconds / 2, load.per_second, load.burst))
    if "overhead" in load.parts:
        console.print(f"bench search: CPU per call, {load.callers} callers", highlight=False)
        document["overhead"] = await _overhead(load)
    if "lookups" in load.parts:
        document["lookups"] = await _lookups()
    return document


# --- quota ------------------------------------------------------------------------------------------------------------


async def _quota(load: SearchLoad) -> dict[str, Any]:
    async with running_provider(slow_provider(load.per_second, load.burst)) as url, aiohttp.ClientSession() as session:
        quota = QuotaSettings(per_second=load.per_second, burst=load.burst)
        async with _workers(serper_settings(url, quota)) as toolbox:
            outcomes = await _offer(load, lambda i, until: _outcome(toolbox, i, until))
        return _used(load, outcomes, await _counts(session, url))


async def _plain(load: SearchLoad) -> dict[str, Any]:
    """What peers ship: a semaphore, and exponential waiting with jitter after a 429 or a 503."""
    slots = asyncio.Semaphore(PLAIN_AT_ONCE)
    provider, connector = running_provider(slow_provider(load.per_second, load.burst)), aiohttp.TCPConnector(limit=0)
    async with provider as url, aiohttp.ClientSession(connector=connector) as session:

        async def call(i: int, until: float) -> str:
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())), slots:
                    for attempt in range(PLAIN_RETRIES + 1):
                        async with session.post(f"{url}/search", json={"q": f"question {i}"}) as reply:
                            if reply.status == 200:
                                await reply.json()
                                return "ok"
                        await asyncio.sleep(random.uniform(0.5, 1.0) * min(8.0, 0.5 * 2**attempt))
                    return "gave_up"
            except TimeoutError:
                return "deadline"

        outcomes = await _offer(load, call)
        return _used(load, outcomes, await _counts(session, url))


async def _offer(load: SearchLoad, call: Callable[[int, float], Awaitable[str]]) -> Counter[str]:
    """An open loop: calls begin when their time has come, whatever became of those before; all end at the same time."""
    began = time.monotonic()
    until, calls = began + load.seconds, list[asyncio.Task[str]]()
    for i in range(int(load.offered * load.seconds)):
        await asyncio.sleep(max(0.0, began + i / load.offered - time.monotonic()))
        calls.append(asyncio.create_task(_ended(call(i, until))))
    return Counter(await asyncio.gather(*calls))


async def _ended(call: Awaitable[str]) -> str:
    return await call


async def _outcome(toolbox: Any, i: int, until: float) -> str:
    result: ToolResult = await toolbox.call(ToolRequest(Tool.TEXT_SEARCH, f"question {i}"), deadline=until)
    if result.outcome is Outcome.OK:
        return "ok"
    return "deadline" if time.monotonic() >= until - 0.5 else f"{result.outcome.value}: {result.message}"


def _used(load: SearchLoad, outcomes: Counter[str], counts: dict[str, Any]) -> dict[str, Any]:
    offered = int(load.offered * load.seconds)
    return {
        "offered": offered,
        "outcomes": dict(outcomes),
        "lost": offered - outcomes.total(),
        "quota_used": counts["accepted"] / (load.per_second * load.seconds + load.burst),
        **counts,
    }


async def _broker(load: SearchLoad) -> dict[str, Any]:
    """Kills the broker's process twice: its budget must hold to the last request."""
    from actors.search.quota.actor import PREFIX, endpoint_id

    half = replace(load, seconds=load.seconds / 2)
    budget = int(half.seconds * half.per_second * 0.6)
    quota = QuotaSettings(per_second=load.per_second, burst=load.burst, per_day=BudgetSettings(requests=budget))
    async with running_provider(slow_provider(load.per_second, load.burst)) as url, aiohttp.ClientSession() as session:
        with _scratch() as folder:
            settings = serper_settings(url, quota, quota_folder=folder)
            settings = replace(settings, text=[replace(settings.text[0], name=f"bench-kill-{os.getpid()}")])
            async with _workers(settings) as toolbox:
                name = PREFIX + endpoint_id(settings.text[0].name, os.environ[KEY_ENV])

                async def killer() -> None:
                    for _ in range(2):
                        await asyncio.sleep(half.seconds / 5)
                        ray.kill(ray.get_actor(name), no_restart=False)

                outcomes, _ = await asyncio.gather(_offer(half, lambda i, until: _outcome(toolbox, i, until)), killer())
                broker: Any = ray.get_actor(name)
                standing = await broker.standing.remote()
                ray.kill(broker)
        counts = await _counts(session, url)
    refused = sum(n for says, n in outcomes.items() if "budget" in says)
    spent = standing.spent["day"]["requests"] + standing.in_flight
    return {
        "budget": budget, "kills": 2, "refused_for_budget": refused, "spent_by_journal": spent,
        "overspent": max(0, counts["accepted"] - budget), "forgotten": max(0, counts["accepted"] - spent), **counts,
    }  # fmt: skip


# --- one process ------------------------------------------------------------------------------------------------------


async def _overhead(load: SearchLoad) -> dict[str, Any]:
    """CPU of this process per call: through the gateway, and for the same requests of a bare aiohttp client."""
    each, rounds = 5, 3
    async with running_provider(ProviderLoad(median_s=0.2, p99_s=0.4)) as url:
        gateway = build_gateway(serper_settings(url, None), NoImages())
        ours, bare = list[float](), list[float]()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def plain(i: int) -> None:
                body = {"q": f"question {i}", "num": 10}
                async with session.post(f"{url}/search", json=body, headers={"X-API-KEY": "loopback"}) as reply:
                    json.loads(await reply.read())

            async def through(i: int) -> None:
                request = ToolRequest(Tool.TEXT_SEARCH, f"question {i}")
                result = await gateway.call(request, deadline=time.monotonic() + 60)
                assert result.outcome is Outcome.OK, result

            for number in range(-1, rounds):  # the first one warms up
                start = number * load.callers * each
                seconds = [await _cpu(load.callers, each, call, start) for call in (plain, through)]
                if number >= 0:
                    bare.append(seconds[0])
                    ours.append(seconds[1])
        await gateway.close()
    extra = sorted(1000 * (a - b) for a, b in zip(ours, bare, strict=True))[rounds // 2]
    return {"bare_ms": 1000 * min(bare), "gateway_ms": 1000 * min(ours), "above_ms": extra, "callers": load.callers}


async def _cpu(callers: int, each: int, call: Callable[[int], Awaitable[None]], start: int) -> float:
    """CPU seconds of this process per call, with `callers` at once."""

    async def caller(n: int) -> None:
        for i in range(each):
            await call(start + n * each + i)

    before = _cpu_seconds()
    await asyncio.gather(*(caller(n) for n in range(callers)))
    return (_cpu_seconds() - before) / (callers * each)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _lookups() -> dict[str, Any]:
    async with running_provider(ProviderLoad(median_s=0.2, p99_s=0.3)) as url, aiohttp.ClientSession() as session:
        gateway = build_gateway(serper_settings(url, None), NoImages())
        request = ToolRequest(Tool.TEXT_SEARCH, "one question")

        async def ask() -> ToolResult:
            return await gateway.call(request, deadline=time.monotonic() + 60)

        results = await asyncio.gather(*(ask() for _ in range(100)))
        counts = await _counts(session, url)
        began, n = time.perf_counter(), 20_000
        for _ in range(n):
            await ask()
        rate = n / (time.perf_counter() - began)
        await gateway.close()
    answered = sum(result.outcome is Outcome.OK for result in results)
    return {"lookups_per_s": rate, "identical_calls": 100, "answered": answered, "requests": counts["accepted"]}


# --- around it --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _workers(settings: SearchSettings) -> AsyncIterator[Any]:
    from actors.search.actor import RemoteToolbox, start_search_workers

    workers = start_search_workers(replace(settings, retry=RetrySettings(retries=4)), NoImages())
    try:
        await asyncio.gather(*(worker.ready.remote() for worker in workers))
        yield RemoteToolbox(workers)
    finally:
        for worker in workers:
            ray.kill(worker)


async def _counts(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(f"{url}/counts") as reply:
        return await reply.json()


def _scratch() -> Any:
    import tempfile

    return tempfile.TemporaryDirectory(prefix="mmsearch-bench-")


# --- the table --------------------------------------------------------------------------------------------------------


def show(document: dict[str, Any], console: Console) -> None:
    """The figures beside what they are to be."""
    table = Table("", "to be", "gateway", "plain client", title="search under a quota")
    if quota := document.get("quota"):
        ours, plain = quota["gateway"], quota["plain"]
        both = [(one, _row_of(one)) for one in (ours, plain)]
        for i, (what, target) in enumerate(_QUOTA_ROWS):
            table.add_row(what, target, both[0][1][i], both[1][1][i])
    if broker := document.get("broker"):
        table.add_row(
            "broker killed twice: requests of the budget", f"at most {broker['budget']}", str(broker["accepted"]), ""
        )
        table.add_row("  spent and forgotten", "0", str(broker["forgotten"]), "")
    if pool := document.get("pool"):
        _pool_rows(table, PoolRun(**pool))
    if overhead := document.get("overhead"):
        table.add_row(
            f"CPU per call, {overhead['callers']} callers", "plain + 2 ms", f"{overhead['gateway_ms']:.2f} ms",
            f"{overhead['bare_ms']:.2f} ms",
        )  # fmt: skip
    if lookups := document.get("lookups"):
        table.add_row("lookups a second, from memory", "at least 2000", f"{lookups['lookups_per_s']:.0f}", "")
        table.add_row("requests for 100 identical calls at once", "1", str(lookups["requests"]), "")
    console.print(table)


def _pool_rows(table: Table, pool: PoolRun) -> None:
    up = "never" if pool.up_s is None else f"{pool.up_s:.0f} s"
    down = "never" if pool.down_s is None else f"{pool.down_s:.0f} s"
    table.add_row(f"workers under load, of {pool.callers} callers", f"{pool.target}", f"{pool.most}", "")
    table.add_row("  after", "at most 15 s", up, "")
    table.add_row("  one again, after the load", "at most 60 s", down, "")
    table.add_row("calls lost, one worker killed", "0", str(pool.failed), "")


_QUOTA_ROWS = (
    ("quota used", "at least 95 %"),
    ("answers with 429", "0"),
    ("calls answered", ""),
    ("calls lost", "0"),
    ("calls answered twice", "0"),
)


def _row_of(side: dict[str, Any]) -> list[str]:
    answered = side["outcomes"].get("ok", 0)
    return [
        f"{100 * side['quota_used']:.1f} %",
        str(side["throttled"]),
        str(answered),
        str(side["lost"]),
        str(side["doubled"]),
    ]
