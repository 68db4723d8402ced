"""Which sampler an episode runs on. Pure: no asyncio, no clock.

The siblings of a group start from the same prompt and the same pictures, so where there are several samplers a group
is given places for all its siblings on one of them: its prompt is prefilled once there, its pictures encoded once. An
episode that is played again after a failure, and one that belongs to no group, is given any place.

Always true:
- a seat's `load` counts the episodes that run there or were promised a place, and never exceeds its limit when a place
  is given (a limit that falls lets what runs end);
- every place is given back exactly once: by whoever took it, or by `end_group` for what a group did not use;
- taking and giving back cost the logarithm of the number of samplers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Set
from dataclasses import dataclass, field

HEAP_SLACK = 4  # entries per seat, most of them outdated, after which the heap is made anew


@dataclass(eq=False)
class Seat:
    """The places on one sampler."""

    name: str
    limit: int  # episodes at a time
    number: int = 0  # in order of joining
    load: int = 0
    open: bool = False  # whether it may be given episodes

    @property
    def room(self) -> int:
        """Places that can be given now."""
        return self.limit - self.load if self.open and self.load < self.limit else 0


@dataclass(eq=False)
class _Home:
    """Where a group sits; `left`: places there that were promised to siblings that have not come yet."""

    seat: Seat
    left: int


@dataclass
class Seating:
    """Gives out the places of all seats, where there is most room first."""

    group_size: int  # siblings of a group
    _seats: dict[str, Seat] = field(default_factory=dict)
    _by_room: list[tuple[int, int, str]] = field(default_factory=list)  # a heap of (-room, number, name), some outdated
    _homes: dict[Hashable, _Home | None] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, seat: Seat) -> None:
        """It is given nothing before it is opened. Raise ValueError for a name that is taken."""
        if seat.name in self._seats:
            raise ValueError(f"two samplers have the same name, {seat.name}")
        seat.number = next(self._numbers)
        self._seats[seat.name] = seat

    def remove(self, seat: Seat) -> None:
        """It is gone; places on it may still be given back."""
        seat.open = False
        del self._seats[seat.name]

    def set_open(self, seat: Seat, is_open: bool) -> None:
        """One that has been removed stays shut."""
        seat.open = is_open and seat.name in self._seats
        self._changed(seat)

    def set_limit(self, seat: Seat, limit: int) -> None:
        """What runs beyond a lower limit runs on."""
        seat.limit = limit
        self._changed(seat)

    def take(self, group: Hashable | None = None, avoid: Set[str] = frozenset()) -> Seat | None:
        """A place for one episode; None while there is none.

        `group`: the one that it belongs to, None for any place. `avoid`: names of seats that are the last choice.
        """
        if group is None or avoid:
            return self._any(avoid)
        home = self._homes.get(group)
        if home is None and group not in self._homes and len(self._seats) > 1:
            if (seat := self._roomiest(frozenset())) is None:
                return None
            if seat.limit >= self.group_size:
                if seat.room < self.group_size:
                    return None  # those that end on it make room for the whole group
                home = _Home(seat, self.group_size)
                self._load(seat, self.group_size)
            self._homes[group] = home
        if home is None or not home.left or not home.seat.open:
            return self._any(avoid)
        home.left -= 1
        return home.seat

    def give_back(self, seat: Seat) -> None:
        """The episode that had this place has ended, or will not come."""
        seat.load -= 1
        self._changed(seat)

    def end_group(self, group: Hashable) -> None:
        """No sibling will ask any more. Groups that never asked are no error."""
        home = self._homes.pop(group, None)
        if home is not None and home.left:
            self._load(home.seat, -home.left)

    # -- inside --

    def _any(self, avoid: Set[str]) -> Seat | None:
        seat = self._roomiest(avoid) or self._roomiest(frozenset())
        if seat is not None:
            self._load(seat, 1)
        return seat

    def _roomiest(self, avoid: Set[str]) -> Seat | None:
        passed_over: list[tuple[int, int, str]] = []
        found = None
        while self._by_room and found is None:
            room, _, name = entry = self._by_room[0]
            seat = self._seats.get(name)
            if seat is None or -room != seat.room:
                heapq.heappop(self._by_room)  # it has changed since, and is here again if it has room
            elif name in avoid:
                passed_over.append(heapq.heappop(self._by_room))
            else:
                found = seat
        for entry in passed_over:
            heapq.heappush(self._by_room, entry)
        return found

    def _load(self, seat: Seat, more: int) -> None:
        seat.load += more
        self._changed(seat)

    def _changed(self, seat: Seat) -> None:
        room = seat.room
        if not room:
            return
        heapq.heappush(self._by_room, (-room, seat.number, seat.name))
        if len(self._by_room) > HEAP_SLACK * (len(self._seats) + 1):
            self._by_room = [(-s.room, s.number, s.name) for s in self._seats.values() if s.room]
            heapq.heapify(self._by_room)
