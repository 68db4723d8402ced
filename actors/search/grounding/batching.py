"""Calls that arrive within a few milliseconds as one batch for a function that is faster so.

Always true: one batch runs at a time, in a thread; every caller gets its own answer or its own error, and one bad
request fails nobody else; no more calls wait than `max_waiting`, and one that was given up is not run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from actors.search.seams import ErrorKind, ProviderError

Q = TypeVar("Q")
A = TypeVar("A")


class Batches(Generic[Q, A]):
    """Gathers requests for `run`, which answers a list of them in order. For one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[Q]], Sequence[A]],
        *,
        max_batch: int,
        max_waiting: int,
        gather_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`gather_s`: how long the first of a batch waits for others; while a batch runs, the next one gathers."""
        self._run, self._max_batch, self._max_waiting = run, max_batch, max_waiting
        self._gather_s, self._sleep = gather_s, sleep
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._server: asyncio.Task[None] | None = None

    async def ask(self, request: Q) -> A:
        """The answer to `request`. Raises what `run` raised for it alone, and ProviderError(RATE) at once when full."""
        if len(self._waiting) >= self._max_waiting:
            raise ProviderError(ErrorKind.RATE, f"{self._max_waiting} calls wait already")
        entry = (request, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        try:
            return await entry[1]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            raise

    async def _serve(self) -> None:
        """Run batches until nobody waits."""
        await self._sleep(self._gather_s)
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            answers = await asyncio.to_thread(self._answers, [request for request, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # given up meanwhile
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _answers(self, requests: Sequence[Q]) -> list[A | Exception]:
        """One answer or error for each. A batch that fails is tried again one by one: it may be one request's fault."""
        try:
            answers = list(self._run(requests))
            if len(answers) != len(requests):
                raise ValueError(f"{len(answers)} answers to {len(requests)} requests")
            return [*answers]
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [self._answers([request])[0] for request in requests]
