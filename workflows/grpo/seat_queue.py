"""Episodes that wait for a seat, oldest group first.

Always true: whoever was given a seat gets it or, cancelled meanwhile, gives it back; who waits has a deadline, unless a
sampler lives. `serve` is to be called whenever a seat may have become free; it costs nothing where nobody waits.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field

from cluster.errors import RunBroken
from workflows.grpo.places import Place, Places


class NoSampler(RunBroken):
    """No sampler could be had within the deadline."""


@dataclass(order=True)
class _Waiter:
    priority: tuple[int, ...]
    number: int
    seat: asyncio.Future[Place] = field(compare=False)
    avoid: frozenset[str] = field(compare=False)
    group: Hashable | None = field(compare=False)


class SeatQueue:
    """All methods belong to one event loop."""

    def __init__(self, places: Places, patience_s: float) -> None:
        """`patience_s`: without any live sampler for so long, nobody waits any longer."""
        self._places, self._patience_s = places, patience_s
        self._waiters: list[_Waiter] = []  # a heap; those whose future is done have gone
        self._numbers = itertools.count()
        self.waiting = 0

    async def lease(self, priority: tuple[int, ...], avoid: frozenset[str], group: Hashable | None) -> Place:
        """A place for one episode, to be given back; arguments as `Seating.take` has them. Raise `NoSampler`."""
        if not self.waiting and (seat := self._places.seating.take(group, avoid)):
            return self._places[seat.name]
        waiter = _Waiter(priority, next(self._numbers), asyncio.get_running_loop().create_future(), avoid, group)
        heapq.heappush(self._waiters, waiter)
        self.waiting += 1
        self.serve()
        try:
            while not waiter.seat.done():
                await asyncio.wait({waiter.seat}, timeout=self._patience_s)
                if not waiter.seat.done() and not self._places.live:
                    reasons = "; ".join(f"{place.name}: {place.fenced}" for place in self._places)
                    raise NoSampler(f"no sampler came back within {self._patience_s:.0f} s ({reasons})")
            return waiter.seat.result()
        except asyncio.CancelledError:
            if waiter.seat.done():
                self.give_back(waiter.seat.result())
            raise
        finally:
            if waiter.seat.cancel():  # nobody waits for it any more, `serve` passes it over
                self.waiting -= 1

    def give_back(self, place: Place) -> None:
        """The episode that was given this place has ended, or will not come."""
        self._places.seating.give_back(place.seat)
        self.serve()

    def end_group(self, group: Hashable) -> None:
        """No sibling will ask any more."""
        self._places.seating.end_group(group)
        self.serve()

    def serve(self) -> None:
        """Seats those that wait, as far as there are seats."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.seat.done():
                seat = self._places.seating.take(waiter.group, waiter.avoid)
                if seat is None:
                    return
                waiter.seat.set_result(self._places[seat.name])
                self.waiting -= 1
            heapq.heappop(self._waiters)
