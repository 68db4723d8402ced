"""Where the calls of one process get their leases: one question at a time to the broker, for all who wait.

Always true: a lease reaches a caller that still waits or goes back unused, and what has ended is told to the broker
within `TELL_EVERY` seconds. A broker that is dead or restarting is asked again until nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from actors.search.quota.broker import QuotaBroker
from actors.search.quota.core import Ending, Reason, Refusal, Settlement
from actors.search.seams import ErrorKind, ProviderError

log = logging.getLogger(__name__)
TELL_EVERY = 0.005  # seconds for which endings are gathered
ASK_FOR = 10.0  # seconds that one question to the broker may stay open
BATCH = 64  # leases asked for at once
AFTER_FAILURE = 0.25  # seconds before a broker that could not be reached is asked again
KINDS = {
    Reason.BUDGET: ErrorKind.BUDGET,
    Reason.OPEN: ErrorKind.OPEN,
    Reason.NO_KEY: ErrorKind.BAD_KEY,
    Reason.NO_CREDIT: ErrorKind.NO_CREDIT,
}


class BrokerUnreachable(RuntimeError):
    """The broker is dead, or on its way back."""


class LeaseSource(Protocol):
    """A broker, here or far away."""

    async def open(self) -> None:
        """Returns once it answers. Raises BrokerUnreachable."""
        ...

    async def request(self, wanted: int, seconds_left: float) -> tuple[int, ...] | Refusal:
        """As `QuotaBroker.request`. Raises BrokerUnreachable."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """As `QuotaBroker.settle`. Raises BrokerUnreachable."""
        ...

    async def close(self) -> None:
        """Give up what this process holds of the broker."""
        ...


class LocalSource:
    """A broker in this process."""

    def __init__(self, broker: QuotaBroker) -> None:
        self._broker = broker

    async def open(self) -> None:
        """Nothing: it is here."""

    async def request(self, wanted: int, seconds_left: float) -> tuple[int, ...] | Refusal:
        return await self._broker.request(wanted, seconds_left)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self._broker.settle(settlements)

    async def close(self) -> None:
        await self._broker.close()


class LeaseDesk:
    """Leases for one endpoint. For one event loop."""

    def __init__(self, endpoint: str, source: LeaseSource) -> None:
        self._endpoint, self._source = endpoint, source
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._ended: list[Settlement] = []
        self._asking: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Calls that wait for a lease: the provider's limit, not load."""
        return sum(not future.done() for future in self._waiting)

    async def open(self) -> None:
        """As `LeaseSource.open`: nobody needs it, but the first calls are quicker, and what cannot work shows early."""
        await self._source.open()

    async def lease(self) -> int:
        """A lease, as soon as there is one; the caller bounds the wait. Raises ProviderError for a refusal."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self.settle(Settlement(future.result(), Ending.UNUSED))
            raise

    def settle(self, settlement: Settlement) -> None:
        """This lease has ended."""
        self._ended.append(settlement)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Tell what has ended; who still waits is cancelled."""
        for future in self._waiting:
            future.cancel()
        for task in (self._asking, self._telling):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._ended:
            await self._source.settle(self._ended)
            self._ended = []
        await self._source.close()

    # --- the two conversations --------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        while self._drop_the_gone():
            try:
                answer = await self._source.request(min(len(self._waiting), BATCH), ASK_FOR)
            except BrokerUnreachable as error:
                log.warning("quota of %s: %s; asking again", self._endpoint, error)
                await asyncio.sleep(AFTER_FAILURE)
                continue
            if isinstance(answer, Refusal):
                self._refuse(answer)
            else:
                for lease in answer:
                    self._hand_out(lease)

    def _drop_the_gone(self) -> bool:
        """Whether anybody still waits."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        return bool(self._waiting)

    def _hand_out(self, lease: int) -> None:
        if self._drop_the_gone():
            self._waiting.popleft().set_result(lease)
        else:
            self.settle(Settlement(lease, Ending.UNUSED))

    def _refuse(self, refusal: Refusal) -> None:
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(ProviderError(KINDS[refusal.reason], f"{self._endpoint}: {refusal.says}"))

    async def _tell(self) -> None:
        await asyncio.sleep(TELL_EVERY)
        while self._ended:
            ended, self._ended = self._ended, []
            try:
                await self._source.settle(ended)
            except BrokerUnreachable:
                self._ended = ended + self._ended  # a broker that has restarted ignores leases it does not know
                await asyncio.sleep(AFTER_FAILURE)
