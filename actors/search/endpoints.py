"""Asking providers: in order, with retries, bounded in time and in number.

One request at a time is what a quota lease will be taken for, so all requests to providers leave through `_attempt`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from actors.agent.seams import Clock
from actors.search.retry import wait_before
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import SearchSettings

log = logging.getLogger(__name__)

P = TypeVar("P")
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Endpoint(Generic[P]):
    """A provider under the name that evidence and ledger know it by."""

    name: str
    provider: P
    usd_per_call: float = 0.0  # of an answered call


@dataclass
class Tally:
    """What one caller caused; stays empty for those who are served by the cache or by a sibling's request."""

    requests: int = 0
    cost_usd: float = 0.0


class Asker:
    """Sends requests to providers. For one event loop."""

    def __init__(self, settings: SearchSettings, clock: Clock, sleep: Sleep, rng: random.Random) -> None:
        self._settings, self._clock, self._sleep, self._rng = settings, clock, sleep, rng
        self._slots = asyncio.Semaphore(settings.max_concurrency)

    async def first_answer(
        self, endpoints: Sequence[Endpoint[P]], ask: Callable[[P], Awaitable[list[T]]], tally: Tally
    ) -> tuple[list[T], str]:
        """The answer of the first provider that gives one, and its name.

        Raises ProviderError when none does, one that a later call may not meet before one that it will.
        """
        until = self._clock() + self._settings.call_deadline
        errors: list[ProviderError] = []
        for endpoint in endpoints:
            try:
                return await self._attempts(endpoint, ask, tally, until), endpoint.name
            except ProviderError as error:
                errors.append(error)
        raise next((error for error in errors if error.kind.retryable), errors[-1])

    async def _attempts(
        self, endpoint: Endpoint[P], ask: Callable[[P], Awaitable[list[T]]], tally: Tally, until: float
    ) -> list[T]:
        attempt = 0
        while True:
            try:
                answer = await self._attempt(endpoint, ask, tally, until)
                tally.cost_usd += endpoint.usd_per_call
                return answer
            except ProviderError as error:
                wait = wait_before(attempt, error, self._settings.retry, self._rng)
                if wait is None or self._clock() + wait >= until:
                    raise
            await self._sleep(wait)
            attempt += 1

    async def _attempt(
        self, endpoint: Endpoint[P], ask: Callable[[P], Awaitable[list[T]]], tally: Tally, until: float
    ) -> list[T]:
        """One request. Whatever goes wrong in an adapter leaves as a ProviderError."""
        try:
            async with asyncio.timeout(max(0.0, until - self._clock())), self._slots:
                tally.requests += 1
                async with asyncio.timeout(self._settings.attempt_deadline):
                    return await ask(endpoint.provider)
        except ProviderError:
            raise
        except OSError as error:  # cut connections, and timeouts, ours among them
            problem = str(error) or type(error).__name__
            raise ProviderError(ErrorKind.TRANSIENT, f"{endpoint.name}: {problem}") from error
        except Exception as error:  # an adapter is third-party code; what it cannot read, it cannot answer
            log.exception("provider %s failed in a way that its adapter does not know", endpoint.name)
            raise ProviderError(ErrorKind.SCHEMA, f"{endpoint.name}: {type(error).__name__}") from error
