"""Which sampler an episode runs on. Pure: no asyncio, no clock.

The siblings of a group start from the same prompt and the same pictures, so where there are several samplers a group
is given places for all its siblings on one of them: its prompt is prefilled once there, its pictures encoded once. An
episode that is played again after a failure, and one that belongs to no group, is given any place.

Always true:
- a seat's `load` counts the episodes that run there or were promised a place, and never exceeds its limit when a place
  is given (a limit that falls lets what runs end);
- every place is given back exactly once: by whoever took it, or by `end_group` for what a group did not use;
- what taking and giving back cost does not depend on how many samplers there are.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Set
from dataclasses import dataclass, field


@dataclass(eq=False)
class Seat:
    """The places on one sampler."""

    name: str
    limit: int  # episodes at a time
    load: int = 0
    open: bool = False  # whether it may be given episodes
    listed: int = 0  # the room under which `Seating` has it; 0 where it has none

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
    """Gives out the places of all seats, where there is most room first, and of those where that is so for longest."""

    group_size: int  # siblings of a group
    _seats: dict[str, Seat] = field(default_factory=dict)
    # those with room; ordered dicts, since the front of a dict from which the first was often deleted is found slowly
    _by_room: defaultdict[int, OrderedDict[Seat, None]] = field(default_factory=lambda: defaultdict(OrderedDict))
    _most: int = 0  # room that any seat has, or more
    _homes: dict[Hashable, _Home | None] = field(default_factory=dict)

    def add(self, seat: Seat) -> None:
        """It is given nothing before it is opened. Raise ValueError for a name that is taken."""
        if seat.name in self._seats:
            raise ValueError(f"two samplers have the same name, {seat.name}")
        self._seats[seat.name] = seat

    def remove(self, seat: Seat) -> None:
        """It is gone; places on it may still be given back."""
        seat.open = False
        self._changed(seat)
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
        while self._most and not self._by_room[self._most]:
            self._most -= 1
        for room in range(self._most, 0, -1):
            for seat in self._by_room[room]:
                if seat.name not in avoid:
                    return seat
        return None

    def _load(self, seat: Seat, more: int) -> None:
        seat.load += more
        self._changed(seat)

    def _changed(self, seat: Seat) -> None:
        room = seat.room
        if room == seat.listed:
            return
        if seat.listed:
            del self._by_room[seat.listed][seat]
        if room:
            self._by_room[room][seat] = None
            if room > self._most:
                self._most = room
        seat.listed = room
