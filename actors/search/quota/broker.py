"""A QuotaBroker: the core, a clock, a journal and the futures of those who wait. Knows nothing of Ray.

    request() ---> core.ask ---> [waits for its future] <--- _turn(): core.poll, again at core.wake_at
    settle()  ---> core.settle ---> _turn()
    the journal is written, in a thread, before the core may grant what it does not cover yet

Always true: every request ends by its deadline, with leases, with a refusal, or with nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.agent.seams import Clock
from actors.search.quota.core import Ending, Grant, QuotaCore, Refusal, Settlement, seconds_until
from actors.search.quota.journal import Journal
from actors.search.quota.settings import QuotaSettings

log = logging.getLogger(__name__)
LONGEST_SLEEP = 60.0  # seconds between two looks at the core, whatever it says
JOURNAL_RETRY = 1.0  # seconds after a journal that could not be written


class SteadyClock:
    """Unix seconds that never jump: the wall clock as it was at the start, and the time that has passed since."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset


@dataclass(frozen=True)
class Standing:
    """What `mmsearch quota` shows of one endpoint."""

    endpoint: str
    left: dict[str, dict[str, float]]  # window -> requests, tokens, usd; only what is bounded
    spent: dict[str, dict[str, float]]  # window -> the same, of everything
    in_flight: int
    waiting: int
    granted: int
    throttled: int
    lost: int
    paused_s: float
    closed: str


class QuotaBroker:
    """One endpoint with one key, for one event loop. `journal`: None where nothing needs to outlive the process."""

    def __init__(
        self,
        endpoint: str,
        settings: QuotaSettings,
        usd_per_call: float = 0.0,
        journal: Journal | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.endpoint, self._journal, self._clock = endpoint, journal, clock or SteadyClock()
        now = self._clock()
        self.core = QuotaCore(settings, now, usd_per_call)
        if journal is not None and (written := journal.read()) is not None:
            self.core.restore(now, written)
        self._waiting: dict[int, asyncio.Future[tuple[int, ...] | Refusal]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    async def request(self, wanted: int, seconds_left: float) -> tuple[int, ...] | Refusal:
        """Up to `wanted` leases, at least one as soon as one is open; () when none was within `seconds_left`."""
        asked = self.core.ask(self._clock(), wanted)
        if isinstance(asked, Refusal):
            return asked
        future = self._waiting[asked] = asyncio.get_running_loop().create_future()
        self._turn()
        try:
            async with asyncio.timeout(max(0.0, seconds_left)):
                return await asyncio.shield(future)
        except TimeoutError:
            return future.result() if future.done() else ()
        except asyncio.CancelledError:
            if future.done() and not isinstance(leases := future.result(), Refusal):
                self.settle([Settlement(lease, Ending.UNUSED) for lease in leases])
            raise
        finally:
            self.core.withdraw(asked)
            self._waiting.pop(asked, None)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """These leases have ended."""
        now = self._clock()
        for settlement in settlements:
            self.core.settle(now, settlement)
        self._turn()

    def configure(self, settings: QuotaSettings, usd_per_call: float) -> None:
        """Other limits from now on: the last who comes with a configuration decides for all."""
        self.core.configure(self._clock(), settings, usd_per_call)
        self._turn()

    def standing(self) -> Standing:
        now, core = self._clock(), self.core
        spent = {
            window.name: {
                "requests": window.spent.requests,
                "tokens": window.spent.tokens,
                "usd": window.spent.micro_usd / 1e6,
            }
            for window in core.budgets.windows
        }
        return Standing(
            endpoint=self.endpoint,
            left=core.left(),
            spent=spent,
            in_flight=core.in_flight,
            waiting=core.waiting,
            granted=core.granted,
            throttled=core.throttles,
            lost=core.lost,
            paused_s=core.paused_for(now),
            closed=core.closed_because(now),
        )

    async def close(self) -> None:
        """Write what was really spent; who still waits gets nothing."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(())
        if self._timer:
            self._timer.cancel()
        if self._writing:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._journal is not None:
            await asyncio.to_thread(self._journal.write, self.core.final())

    # --- the turn ---------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Grant what is open; see that the journal is ahead, and that there is a next turn when time opens more."""
        now = self._clock()
        for decided in self.core.poll(now):
            ticket, answer = (decided.ticket, decided.leases) if isinstance(decided, Grant) else decided
            future = self._waiting.pop(ticket, None)
            if future is not None and not future.done():
                future.set_result(answer)
        self._keep_journal_ahead(now)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        wait = seconds_until(self.core.wake_at(now), now)
        if wait < LONGEST_SLEEP or self._waiting:
            self._timer = asyncio.get_running_loop().call_later(min(wait, LONGEST_SLEEP), self._turn)

    def _keep_journal_ahead(self, now: float) -> None:
        claims = self.core.to_journal(now)
        if claims is None or (self._writing and not self._writing.done()):
            return
        if self._journal is None:
            self.core.journalled(claims)
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._turn)
            return
        self._writing = asyncio.get_running_loop().create_task(self._write(claims))

    async def _write(self, claims: dict[str, Any]) -> None:
        assert self._journal is not None
        try:
            await asyncio.to_thread(self._journal.write, claims)
        except OSError as error:
            log.warning("quota of %s: the journal could not be written, nothing is granted: %s", self.endpoint, error)
            asyncio.get_running_loop().call_later(JOURNAL_RETRY, self._turn)
        else:
            self.core.journalled(claims)
            asyncio.get_running_loop().call_soon(self._turn)
