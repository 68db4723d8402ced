"""Answers in memory: least recently used first out, and one flight for identical requests.

Always true: only what was computed without error is kept, and at most one computation per key is under way. One that
nobody waits for any more goes on if it has been paid for (`paid`), so that the answer is there next time, and ends if
it has not: behind a quota, requests for callers that have left would keep others from theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def request_key(**parts: Any) -> str:
    """A canonical hash of what identifies a request; `parts` are JSON values."""
    encoded = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode()).hexdigest()


@dataclass
class _Flight:
    """One computation under way. `waiting`: callers that want its answer."""

    paid: bool = False
    waiting: int = 0


_flight: ContextVar[_Flight | None] = ContextVar("flight", default=None)


def paid() -> None:
    """The computation that calls this has begun to cost something, and is finished for whoever asks next."""
    flight = _flight.get()
    if flight is not None:
        flight.paid = True


class SingleFlightCache(Generic[T]):
    """Remembers `entries` answers by key. For one event loop."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: OrderedDict[str, T] = OrderedDict()
        self._flights: dict[str, tuple[_Flight, asyncio.Task[T]]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def following(self) -> int:
        """Callers that wait for what a sibling has asked."""
        return sum(max(0, flight.waiting - 1) for flight, _ in self._flights.values())

    async def get(self, key: str, compute: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The answer to `key`, and whether it cost this caller nothing (remembered, or asked by a sibling).

        `compute` runs in a task of its own: a caller that is cancelled or runs out of time takes nothing from its
        siblings. `compute` must bound its own time.
        """
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key], True
        shared = key in self._flights
        flight, task = self._flights[key] if shared else self._start(key, compute)
        flight.waiting += 1
        try:
            return await asyncio.shield(task), shared
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.paid and not task.done():
                task.cancel()
                self._flights.pop(key, None)  # who asks from now on starts anew

    def _start(self, key: str, compute: Callable[[], Awaitable[T]]) -> tuple[_Flight, asyncio.Task[T]]:
        flight = _Flight()
        outer = _flight.set(flight)  # the task keeps a copy of this context
        try:
            task = asyncio.create_task(self._fly(key, flight, compute))
        finally:
            _flight.reset(outer)
        task.add_done_callback(_look_at_the_error)
        self._flights[key] = flight, task
        return flight, task

    async def _fly(self, key: str, flight: _Flight, compute: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await compute()
        finally:
            if key in self._flights and self._flights[key][0] is flight:
                del self._flights[key]
        self._remember(key, answer)
        return answer

    def _remember(self, key: str, answer: T) -> None:
        self._answers[key] = answer
        while len(self._answers) > self._entries:
            self._answers.popitem(last=False)

    async def close(self) -> None:
        """Cancel what is under way."""
        flights = [task for _, task in self._flights.values()]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


def _look_at_the_error(flight: asyncio.Task[Any]) -> None:
    """A flight whose callers have all left fails unseen; asyncio would complain that nobody asked."""
    if not flight.cancelled():
        flight.exception()
