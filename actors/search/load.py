"""What keeps search workers busy: requests at endpoints, calls that wait, how long endpoints take. Pure.

A worker tells a `LoadSample`, a pool merges those of all its workers, `scaling.py` decides by the sum. Always true: a
request that waits for a lease is counted apart from one that occupies a worker, and memory does not grow with calls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actors.agent.seams import Clock
from actors.search.quota.settings import QuotaSettings

REMEMBERED = 512  # requests by which an endpoint's latency is known
REMEMBERED_S = 60.0  # seconds; older ones tell nothing about now


@dataclass(frozen=True)
class EndpointLoad:
    """One endpoint at one moment, as one worker or all together see it."""

    name: str
    in_provider: int = 0  # requests that were sent, or that wait for nothing but a slot of their worker
    waiting: int = 0  # for a lease: the provider's limit, not the worker's
    p95_s: float = 0.0  # of the requests that ended lately; 0: none has
    per_second: float = 0.0  # what the quota allows all workers together; 0: no such limit
    concurrency: int = 0  # the same for requests in flight
    answered: int = 0  # requests that `p95_s` is taken from
    served: int = 0  # requests that were sent and have ended, since the worker started

    @property
    def asked(self) -> int:
        """Requests that are here, on whatever they wait."""
        return self.in_provider + self.waiting


@dataclass(frozen=True)
class LoadSample:
    """One worker, or all together. `calls`: in flight; `resting`: those of them that only wait, at no endpoint, for the
    next attempt or for what a sibling has asked."""

    endpoints: tuple[EndpointLoad, ...] = ()
    calls: int = 0
    resting: int = 0

    @property
    def elsewhere(self) -> int:
        """Calls that are at no endpoint and do not rest: they read pictures, look into caches, write evidence."""
        return max(0, self.calls - self.resting - sum(endpoint.asked for endpoint in self.endpoints))

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, no request either whose caller has left."""
        return not self.calls and not any(endpoint.asked for endpoint in self.endpoints)


def merged(samples: Iterable[LoadSample]) -> LoadSample:
    """Several workers as one. A quota is everybody's together, so it is taken once."""
    samples = list(samples)
    by_name: dict[str, list[EndpointLoad]] = {}
    for sample in samples:
        for endpoint in sample.endpoints:
            by_name.setdefault(endpoint.name, []).append(endpoint)
    return LoadSample(
        tuple(_as_one(by_name[name]) for name in sorted(by_name)),
        sum(sample.calls for sample in samples),
        sum(sample.resting for sample in samples),
    )


def _as_one(loads: list[EndpointLoad]) -> EndpointLoad:
    """Workers are alike, so the mean of their p95, each with the weight of what it has seen, stands for them all."""
    answered = sum(load.answered for load in loads)
    if answered:
        p95_s = sum(load.p95_s * load.answered for load in loads) / answered
    else:
        p95_s = max(load.p95_s for load in loads)
    return EndpointLoad(
        loads[0].name,
        sum(load.in_provider for load in loads),
        sum(load.waiting for load in loads),
        p95_s,
        max(load.per_second for load in loads),
        max(load.concurrency for load in loads),
        answered,
        sum(load.served for load in loads),
    )


class RollingP95:
    """The 95th percentile, by nearest rank, of the last `REMEMBERED` values of the last `REMEMBERED_S` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    def add(self, seconds: float) -> None:
        self._seen.append((self._clock(), seconds))

    def value(self) -> tuple[float, int]:
        """The percentile and of how many values it is; (0, 0) when there are none."""
        oldest = self._clock() - REMEMBERED_S
        while self._seen and self._seen[0][0] < oldest:
            self._seen.popleft()
        ranked = sorted(seconds for _, seconds in self._seen)
        return (ranked[math.ceil(0.95 * len(ranked)) - 1], len(ranked)) if ranked else (0.0, 0)


class EndpointWatch:
    """Counts of one endpoint in one process, for one event loop. `waiting()`: requests that have no lease yet."""

    def __init__(self, name: str, quota: QuotaSettings, waiting: Callable[[], int], clock: Clock) -> None:
        self._name, self._quota, self._waiting, self._clock = name, quota, waiting, clock
        self._latency = RollingP95(clock)
        self._in_provider = self._served = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Around a request that no quota holds back any more."""
        self._in_provider += 1
        try:
            yield
        finally:
            self._in_provider -= 1

    @contextmanager
    def sent(self) -> Iterator[None]:
        """Around the request itself, however it ends: what matters is how long it occupies its place."""
        began = self._clock()
        try:
            yield
        finally:
            self._latency.add(self._clock() - began)
            self._served += 1

    def load(self) -> EndpointLoad:
        p95_s, answered = self._latency.value()
        return EndpointLoad(
            self._name,
            self._in_provider,
            self._waiting(),
            p95_s,
            self._quota.per_second,
            self._quota.concurrency,
            answered,
            self._served,
        )
