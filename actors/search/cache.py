"""Answers in memory: least recently used first out, and one flight for identical requests.

Always true: only what was computed without error is kept, and at most one computation per key is under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def request_key(**parts: Any) -> str:
    """A canonical hash of what identifies a request; `parts` are JSON values."""
    encoded = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode()).hexdigest()


class SingleFlightCache(Generic[T]):
    """Remembers `entries` answers by key. For one event loop."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: OrderedDict[str, T] = OrderedDict()
        self._flights: dict[str, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    async def get(self, key: str, compute: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The answer to `key`, and whether it cost this caller nothing (remembered, or asked by a sibling).

        `compute` runs in a task of its own: a caller that is cancelled or runs out of time leaves it running,
        so its siblings are served and what was paid for is kept. `compute` must bound its own time.
        """
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key], True
        flight = self._flights.get(key)
        shared = flight is not None
        if flight is None:
            flight = asyncio.create_task(self._fly(key, compute))
            self._flights[key] = flight
            flight.add_done_callback(_look_at_the_error)
        return await asyncio.shield(flight), shared

    async def _fly(self, key: str, compute: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await compute()
        finally:
            del self._flights[key]
        self._remember(key, answer)
        return answer

    def _remember(self, key: str, answer: T) -> None:
        self._answers[key] = answer
        while len(self._answers) > self._entries:
            self._answers.popitem(last=False)

    async def close(self) -> None:
        """Cancel what is under way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


def _look_at_the_error(flight: asyncio.Task[Any]) -> None:
    """A flight whose callers have all left fails unseen; asyncio would complain that nobody asked."""
    if not flight.cancelled():
        flight.exception()
