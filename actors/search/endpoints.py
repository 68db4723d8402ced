"""Asking providers: in order, with retries, bounded in time and in number.

All requests to providers leave through `_attempt`, each with a lease where its endpoint has a quota. Waiting for a
lease comes before waiting for a slot: who waits for a provider's limit does not keep others from theirs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from actors.agent.seams import Clock
from actors.search.cache import paid
from actors.search.load import EndpointWatch, LoadSample, merged
from actors.search.metering import bill, metered
from actors.search.quota.budgets import Spend, micro
from actors.search.quota.core import Ending, Settlement
from actors.search.quota.desk import LeaseDesk
from actors.search.quota.settings import QuotaSettings
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
    desk: LeaseDesk | None = None  # where leases come from; None: the endpoint has no quota
    quota: QuotaSettings | None = None  # what the desk's broker goes by
    locale: str = ""  # country and language that it is asked for, as they shape its answers


@dataclass
class Tally:
    """What one caller caused; stays empty for those who are served by the cache or by a sibling's request."""

    requests: int = 0
    cost_usd: float = 0.0
    tokens: int = 0
    waited_s: float = 0.0  # for leases: the provider's limit, not its latency

    def add(self, other: Tally) -> None:
        self.requests += other.requests
        self.cost_usd += other.cost_usd
        self.tokens += other.tokens
        self.waited_s += other.waited_s


class Asker:
    """Sends requests to providers. For one event loop."""

    def __init__(self, settings: SearchSettings, clock: Clock, sleep: Sleep, rng: random.Random) -> None:
        self._settings, self._clock, self._sleep, self._rng = settings, clock, sleep, rng
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._watches: dict[tuple[str, int], EndpointWatch] = {}  # by name and desk: two may share a name, and a quota
        self._resting = 0  # askings that wait for their next attempt

    def load(self) -> LoadSample:
        """What is asked now, and how long endpoints take; calls are counted by who makes them."""
        return merged([LoadSample(tuple(watch.load() for watch in self._watches.values()), resting=self._resting)])

    async def first_answer(
        self, endpoints: Sequence[Endpoint[P]], ask: Callable[[P], Awaitable[T]], tally: Tally
    ) -> tuple[T, str]:
        """The answer of the first provider that gives one, and its name.

        Raises ProviderError when none does: with the words of all, and the kind that a later call may not meet before
        one that it will.
        """
        until = self._clock() + self._settings.call_deadline
        errors: list[ProviderError] = []
        for endpoint in endpoints:
            try:
                return await self._attempts(endpoint, ask, tally, until), endpoint.name
            except ProviderError as error:
                errors.append(error)
        decisive = next((error for error in errors if error.kind.retryable), errors[-1])
        told = "; ".join(dict.fromkeys(error.message for error in errors))
        raise ProviderError(decisive.kind, told, decisive.retry_after) from decisive

    async def _attempts(self, endpoint: Endpoint[P], ask: Callable[[P], Awaitable[T]], tally: Tally, until: float) -> T:
        attempt = 0
        while True:
            try:
                return await self._attempt(endpoint, ask, tally, until)
            except ProviderError as error:
                wait = wait_before(attempt, error, self._settings.retry, self._rng)
                if wait is None or self._clock() + wait >= until:
                    raise
            self._resting += 1
            try:
                await self._sleep(wait)
            finally:
                self._resting -= 1
            attempt += 1

    async def _attempt(self, endpoint: Endpoint[P], ask: Callable[[P], Awaitable[T]], tally: Tally, until: float) -> T:
        """One request, with its lease. Whatever goes wrong in an adapter leaves as a ProviderError."""
        self._watch(endpoint)
        try:
            async with asyncio.timeout(max(0.0, until - self._clock())):
                if endpoint.desk is None:
                    return await self._send(endpoint, ask, tally)
                return await self._with_lease(endpoint, endpoint.desk, ask, tally)
        except ProviderError:
            raise
        except OSError as error:  # cut connections, and timeouts, ours among them
            problem = str(error) or type(error).__name__
            raise ProviderError(ErrorKind.TRANSIENT, f"{endpoint.name}: {problem}") from error
        except Exception as error:  # an adapter is third-party code; what it cannot read, it cannot answer
            log.exception("provider %s failed in a way that its adapter does not know", endpoint.name)
            raise ProviderError(ErrorKind.SCHEMA, f"{endpoint.name}: {type(error).__name__}") from error

    async def _with_lease(
        self, endpoint: Endpoint[P], desk: LeaseDesk, ask: Callable[[P], Awaitable[T]], tally: Tally
    ) -> T:
        asked = self._clock()
        lease = await desk.lease()
        tally.waited_s += self._clock() - asked
        own, ending, retry_after = Tally(), Ending.UNDECIDED, None
        try:
            answer = await self._send(endpoint, ask, own)
            ending = Ending.ANSWERED
            return answer
        except ProviderError as error:
            ending = ENDINGS.get(error.kind, Ending.FAILED) if error.sent else Ending.UNUSED
            retry_after = error.retry_after
            raise
        except OSError:
            ending = Ending.FAILED
            raise
        finally:
            tally.add(own)
            desk.settle(Settlement(lease, ending, Spend(own.requests, own.tokens, micro(own.cost_usd)), retry_after))

    async def _send(self, endpoint: Endpoint[P], ask: Callable[[P], Awaitable[T]], tally: Tally) -> T:
        watch = self._watch(endpoint)
        with watch.admitted():
            async with self._slots:
                tally.requests += 1
                paid()
                with watch.sent(), metered() as meter:
                    try:
                        async with asyncio.timeout(self._settings.attempt_deadline):
                            answer = await ask(endpoint.provider)
                        meter.usd += endpoint.usd_per_call
                        return answer
                    except ProviderError as error:
                        tally.requests -= not error.sent
                        raise
                    finally:
                        tally.tokens += meter.tokens
                        tally.cost_usd += meter.usd
                        bill(meter.usd)

    def _watch(self, endpoint: Endpoint[Any]) -> EndpointWatch:
        name, desk = endpoint.name, endpoint.desk
        if (name, id(desk)) not in self._watches:
            watch = EndpointWatch(
                name, endpoint.quota or QuotaSettings(), lambda: desk.waiting if desk else 0, self._clock
            )
            self._watches[name, id(desk)] = watch
        return self._watches[name, id(desk)]


ENDINGS = {
    ErrorKind.RATE: Ending.THROTTLED,
    ErrorKind.BAD_KEY: Ending.NO_KEY,
    ErrorKind.NO_CREDIT: Ending.NO_CREDIT,
    ErrorKind.BAD_REQUEST: Ending.ANSWERED,  # the endpoint is well; what was asked was not
}
