"""The decisions of a QuotaBroker: who waits, who gets a lease, who is refused. Pure; every method takes the time.

    ask -> (queue) -> poll -> Lease -> settle
             |          \\-> Refusal: budget spent, circuit open, key or credit missing
             \\-> withdraw

Always true:
- leases are granted in the order of asking; who asks for several gets what is open, and asks again behind the others;
- what is granted conforms to rate, concurrency and congestion window, and what is spent plus what is set aside never
  exceeds a budget; only the actual use of a lease may turn out larger than its estimate;
- nothing is granted that the journal does not cover: `to_journal` says, ahead of need, what to write;
- a refusal is immediate and typed; nobody waits for what will not come today.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actors.search.quota.breaker import Breaker, Congestion
from actors.search.quota.budgets import Budgets, Spend, micro
from actors.search.quota.limiter import Gcra
from actors.search.quota.settings import QuotaSettings

SOON = 1e-6  # seconds: the least that a wait for a later moment lasts, so that rounding cannot make it none


class Ending(StrEnum):
    """How the request of a lease ended, as far as the endpoint's health is concerned."""

    ANSWERED = "answered"
    FAILED = "failed"  # 5xx, cut connection, timeout
    THROTTLED = "throttled"  # refused for its rate
    NO_KEY = "no_key"
    NO_CREDIT = "no_credit"
    UNDECIDED = "undecided"  # cancelled, or refused for what was asked: nothing is known about the endpoint
    UNUSED = "unused"  # never sent


class Reason(StrEnum):
    BUDGET = "budget"
    OPEN = "open"
    NO_KEY = "no_key"
    NO_CREDIT = "no_credit"


@dataclass(frozen=True)
class Refusal:
    """No lease. `until`: unix seconds at which asking again may be of use; None when that is not known."""

    reason: Reason
    says: str
    until: float | None = None


@dataclass(frozen=True)
class Settlement:
    """What became of a lease. `spend`: None when the estimate stands."""

    lease: int
    ending: Ending
    spend: Spend | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class Grant:
    """Leases for the asker of `ticket`: each lets one request be sent, now."""

    ticket: int
    leases: tuple[int, ...]


@dataclass
class _Waiter:
    wanted: int


class QuotaCore:
    """State of one endpoint and key. Times are unix seconds of a clock that never goes back."""

    def __init__(self, settings: QuotaSettings, now: float, usd_per_call: float = 0.0) -> None:
        self.budgets = Budgets()
        self._congestion = Congestion()
        self.configure(now, settings, usd_per_call)
        self._waiters: OrderedDict[int, _Waiter] = OrderedDict()
        # when a lease is taken for spent, and what is set aside for it
        self._leases: OrderedDict[int, tuple[float, Spend]] = OrderedDict()
        # above every id of a broker before this one: a late settlement meets no lease
        self._last_id = int(now * 1_000_000)
        self.granted = self.throttles = self.lost = 0
        self._fatal: Reason | None = None

    def configure(self, now: float, settings: QuotaSettings, usd_per_call: float) -> None:
        """Other limits from now on; what was spent stays spent, and a burst may just have been sent."""
        self.settings = settings
        self.estimate = Spend(1, settings.tokens_per_call, micro(usd_per_call))
        self.budgets.limit(settings.per_day, settings.per_month)
        self.budgets.roll(now)
        self._rate = Gcra(settings.per_second, settings.burst, settings.jitter) if settings.per_second else None
        self._breaker = Breaker(settings.failures_to_open, settings.open_seconds, settings.longest_open)

    # --- asking -----------------------------------------------------------------------------------------------------

    def ask(self, now: float, wanted: int) -> int | Refusal:
        """Queue for up to `wanted` leases; the ticket, or why there will be none."""
        if wanted < 1:
            raise ValueError("who asks wants at least one lease")
        self._advance(now)
        refusal = self._refusal(now)
        if refusal is not None:
            return refusal
        ticket = self._next_id()
        self._waiters[ticket] = _Waiter(wanted)
        return ticket

    def withdraw(self, ticket: int) -> None:
        """Who asked has gone; unknown tickets (served in the meantime) are ignored."""
        self._waiters.pop(ticket, None)

    def poll(self, now: float) -> Iterator[Grant | tuple[int, Refusal]]:
        """Everything that can be decided at `now`: grants in order, and refusals of all who still wait."""
        self._advance(now)
        while self._waiters:
            refusal = self._refusal(now)
            if refusal is not None:
                refused = list(self._waiters)
                self._waiters.clear()
                yield from [(ticket, refusal) for ticket in refused]
                return
            if (leases := self._take(now, next(iter(self._waiters.values())).wanted)) == ():
                return
            ticket, _ = self._waiters.popitem(last=False)
            yield Grant(ticket, leases)

    def wake_at(self, now: float) -> float | None:
        """When to poll again, if nothing is settled or asked before; None when nobody waits for a moment."""
        moments = [next(iter(self._leases.values()))[0]] if self._leases else []
        if self._waiters and (opens := self._opens_at(now)) is not None:
            moments.append(opens)
        return max(now + SOON, min(moments)) if moments else None

    # --- settling ---------------------------------------------------------------------------------------------------

    def settle(self, now: float, settlement: Settlement) -> None:
        """A lease has ended. One that is unknown (expired, or of a broker before a restart) changes no budget."""
        self._advance(now)
        known, ending = self._leases.pop(settlement.lease, None), settlement.ending
        if known is not None:
            _, set_aside = known
            self.budgets.settle(set_aside, Spend() if ending is Ending.UNUSED else settlement.spend or set_aside)
        if ending is Ending.ANSWERED:
            self._fatal = None
            self._breaker.succeeded()
            self._congestion.succeeded()
        elif ending is Ending.THROTTLED:
            self.throttles += 1
            self._congestion.throttled(now, settlement.retry_after, len(self._leases) + 1)
            self._breaker.undecided()
        elif ending is Ending.FAILED:
            self._breaker.failed(now, "it failed several times in a row")
        elif ending in (Ending.NO_KEY, Ending.NO_CREDIT):
            self._fatal = Reason.NO_KEY if ending is Ending.NO_KEY else Reason.NO_CREDIT
            self._breaker.failed(now, f"it answered {ending.value.replace('_', ' ')}", fatal=True)
        else:
            self._breaker.undecided()

    # --- journal ----------------------------------------------------------------------------------------------------

    def to_journal(self, now: float) -> dict[str, Any] | None:
        """What to write next, ahead of need: half a block before the journal stops covering leases; else None."""
        self._advance(now)
        block = self._block()
        if self.budgets.claimed_for(Spend().plus(self.estimate, 1 + block // 2)):
            return None
        return self.budgets.to_claim(Spend().plus(self.estimate, block + block // 2))

    def journalled(self, written: dict[str, Any]) -> None:
        self.budgets.claim(written)

    def final(self) -> dict[str, Any]:
        """What a broker that stops in good order writes: what was spent, without the claims that were not needed."""
        for window in self.budgets.windows:
            window.claimed = window.spent.plus(self.budgets.reserved)
        return self.budgets.to_claim(Spend())

    def restore(self, now: float, written: dict[str, Any]) -> None:
        """Continue from a journal: claims count as spent, and the provider may have seen a burst just now."""
        self.budgets.roll(now)
        self.budgets.restore(written)
        self.budgets.roll(now)
        if self._rate:
            self._rate.forget_burst(now)

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self._leases)

    @property
    def waiting(self) -> int:
        return sum(waiter.wanted for waiter in self._waiters.values())

    def left(self) -> dict[str, dict[str, float]]:
        """By window what is left of the budgets that are bounded."""
        return {window.name: window.left(self.budgets.reserved) for window in self.budgets.windows}

    def paused_for(self, now: float) -> float:
        """Seconds until the pause that the provider asked for is over."""
        return max(0.0, self._congestion.paused_until - now)

    def closed_because(self, now: float) -> str:
        """Why requests are refused at once; "" when they are not."""
        refusal = self._refusal(now)
        return refusal.says if refusal else ""

    # --- rules ------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """What time does by itself: windows begin, leases that nobody settled count as spent."""
        self.budgets.roll(now)
        while self._leases and next(iter(self._leases.values()))[0] <= now:
            _, (_, set_aside) = self._leases.popitem(last=False)
            self.budgets.settle(set_aside, set_aside)
            self._breaker.undecided()
            self.lost += 1

    def _refusal(self, now: float) -> Refusal | None:
        if spent := self.budgets.never_fits(self.estimate):
            return Refusal(Reason.BUDGET, f"the budget of {spent} is spent")
        if self._breaker.refuses(now):
            reason = self._fatal or Reason.OPEN
            return Refusal(reason, f"closed off: {self._breaker.reason}", max(now, self._breaker.open_until))
        return None

    def _take(self, now: float, wanted: int) -> tuple[int, ...]:
        taken: list[int] = []
        while len(taken) < wanted and self._may_grant(now):
            lease = self._next_id()
            self._leases[lease] = (now + self.settings.lease_seconds, self.estimate)
            self.budgets.reserve(self.estimate)
            if self._rate:
                self._rate.take(now)
            self._breaker.sent()
            self.granted += 1
            taken.append(lease)
        return tuple(taken)

    def _may_grant(self, now: float) -> bool:
        opens = self._opens_at(now)
        return opens is not None and opens <= now and not self._breaker.refuses(now)

    def _opens_at(self, now: float) -> float | None:
        """When the next lease can be granted; None: only after one in flight, or the journal, has moved."""
        if self.settings.concurrency and len(self._leases) >= self.settings.concurrency:
            return None
        if not self.budgets.fits_now(self.estimate) or not self.budgets.claimed_for(self.estimate):
            return None
        opens = self._congestion.open_at(now, len(self._leases))
        if opens is None:
            return None
        return max(opens, self._rate.open_at(now)) if self._rate else opens

    def _block(self) -> int:
        """Leases to claim at once: few of a small budget, for a crash makes the claim look spent."""
        most, calls = self.settings.journal_block, self.budgets.calls(self.estimate)
        return most if calls is None else max(1, min(most, calls // 50))

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id


def seconds_until(moment: float | None, now: float) -> float:
    """How long to wait for `moment`; forever (infinity) for None."""
    return math.inf if moment is None else max(0.0, moment - now)
