"""What `GET /metrics` tells of one ingress replica, in Prometheus's text format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LEFT = 499  # the status, as others write it, of a request whose client did not wait for its end


class Meters:
    """For one process. Names of keys are labels; nothing of a request is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = CollectorRegistry(), clock
        labels = {"registry": self._registry, "namespace": "mmsearch"}
        self._requests = Counter("requests", "Chat requests by HTTP status and key.", ["status", "key"], **labels)
        self._running = Gauge("requests_running", "Chat requests under way, streams included.", **labels)
        self._seconds = Histogram("request_seconds", "From request to end of answer.", buckets=SECONDS, **labels)
        self.under_way = 0

    def begin(self) -> Metered:
        """A request has come."""
        return Metered(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def came(self) -> float:
        self.under_way += 1
        self._running.set(self.under_way)
        return self._clock()

    def went(self, began: float, status: int, key: str) -> None:
        self.under_way -= 1
        self._running.set(self.under_way)
        self._requests.labels(str(status), key).inc()
        self._seconds.observe(self._clock() - began)


class Metered:
    """One request; its end is counted once, however often it is told."""

    def __init__(self, meters: Meters) -> None:
        self._meters, self._began, self._over = meters, meters.came(), False
        self.key = ""  # the name of the key, once it is known

    def end(self, status: int) -> None:
        if not self._over:
            self._over = True
            self._meters.went(self._began, status, self.key)
