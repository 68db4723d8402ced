"""What an answered request used, told by the adapter that knows it: tokens, credits turned into USD.

An adapter whose every answer costs the same says nothing; the price table of the configuration holds. One that is
billed by tokens or by credits calls `spent` once it has its answer, and the gateway, which opened the meter around the
attempt, puts the figures into lease and ledger.

Who has to pay for it may be named from outside, by `billed_to`: a bill comes at the moment of the payment, so that one
who has left by then pays as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Meter:
    """Sums over one attempt. `tokens`: in and out together, as budgets count them; `usd`: beyond `usd_per_call`."""

    tokens: int = 0
    usd: float = 0.0


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)
_payer: ContextVar[Callable[[float], None] | None] = ContextVar("payer", default=None)


def spent(*, tokens: int = 0, usd: float = 0.0) -> None:
    """Add to the meter of the attempt under way; without one (an adapter used on its own) nothing happens."""
    meter = _meter.get()
    if meter is not None:
        meter.tokens += tokens
        meter.usd += usd


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter for what runs inside, the tasks that it starts included."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def bill(usd: float) -> None:
    """Tell who pays for what runs here, where somebody is named, of `usd` more."""
    payer = _payer.get()
    if payer is not None and usd > 0:
        payer(usd)


@contextmanager
def billed_to(payer: Callable[[float], None]) -> Iterator[None]:
    """`payer` is told the USD of every request that is sent from inside, and from tasks that are started there, also
    when they are answered later; it must not raise."""
    token = _payer.set(payer)
    try:
        yield
    finally:
        _payer.reset(token)
