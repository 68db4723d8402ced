"""A provider to be measured against: Serper's shape on loopback, with a quota that it enforces, latency and errors.

Simulated are its answers and its latency; the sockets, the quota (GCRA, a 429 for what exceeds it) and the counts are
real. It is a process of its own, so that its work is not taken for ours: `python -m workflows.bench.search_provider
'{"per_second": 50}'` prints its port and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

from aiohttp import web

from actors.search.quota.limiter import Gcra

P99_OF_NORMAL = 2.3263  # standard deviations above the median


@dataclass(frozen=True)
class ProviderLoad:
    """How the provider behaves. Latency is log-normal."""

    per_second: float = 0.0  # 0: no quota
    burst: int = 5
    median_s: float = 0.0
    p99_s: float = 0.0
    errors: float = 0.0  # share of accepted requests that end in a 503
    seed: int = 0


class Provider:
    """Counts what it accepts, refuses and answers, and every query by its text."""

    def __init__(self, load: ProviderLoad) -> None:
        self._load, self._rng = load, random.Random(load.seed)
        self._gate = Gcra(load.per_second, load.burst) if load.per_second else None
        self._counts: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._first = self._last = 0.0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/search", self._search)
        app.router.add_get("/counts", self._told)
        app.router.add_post("/reset", self._reset)
        return app

    async def _search(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        if self._gate is not None and self._gate.open_at(now) > now:
            self._counts["throttled"] += 1
            return web.json_response({"message": "Too many requests"}, status=429)
        if self._gate is not None:
            self._gate.take(now)
        self._counts["accepted"] += 1
        self._first, self._last = self._first or now, now
        query = (await request.json())["q"]
        await asyncio.sleep(self._latency())
        if self._rng.random() < self._load.errors:
            self._counts["failed"] += 1
            return web.json_response({"message": "Internal error"}, status=503)
        self._answered[query] += 1
        row = {"title": query, "link": "https://example.org/", "snippet": f"what is known of {query}", "position": 1}
        return web.json_response({"searchParameters": {"q": query}, "organic": [row], "credits": 1})

    def _latency(self) -> float:
        if not self._load.median_s:
            return 0.0
        sigma = math.log(max(1.0, self._load.p99_s / self._load.median_s)) / P99_OF_NORMAL
        return self._rng.lognormvariate(math.log(self._load.median_s), sigma)

    async def _told(self, request: web.Request) -> web.Response:
        doubled = sum(n - 1 for n in self._answered.values())
        counts = {name: self._counts[name] for name in ("accepted", "throttled", "failed")}
        span = self._last - self._first
        return web.json_response(
            counts | {"answered": sum(self._answered.values()), "doubled": doubled, "span_s": span}
        )

    async def _reset(self, request: web.Request) -> web.Response:
        self._counts.clear()
        self._answered.clear()
        self._first = self._last = 0.0
        return web.json_response({})


async def serve(load: ProviderLoad) -> None:
    """Serve on a free port of 127.0.0.1, printed as a line, until standard input ends with whoever started it."""
    runner = web.AppRunner(Provider(load).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def command(load: ProviderLoad) -> list[str]:
    """The words that start it."""
    return [sys.executable, "-m", "workflows.bench.search_provider", json.dumps(asdict(load))]


if __name__ == "__main__":
    asyncio.run(serve(ProviderLoad(**json.loads(sys.argv[1]))))
