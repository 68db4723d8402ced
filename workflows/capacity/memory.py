"""What fills the memory of one device, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Item:
    """Bytes, and what they are."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """One device at the moment at which it is fullest."""

    of: str  # whose memory, as in "a learner rank's GPU"
    capacity: int | None  # bytes; None: not known, so nothing is judged
    moment: str  # what happens then
    items: tuple[Item, ...]

    @property
    def total(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def missing(self) -> int:
        """Bytes by which it does not fit; 0 when it does, and when the capacity is not known."""
        return 0 if self.capacity is None else max(0, self.total - self.capacity)

    def bytes_of(self, name: str) -> int:
        return sum(item.bytes for item in self.items if item.name == name)


def fullest(of: str, capacity: int | None, always: Sequence[Item], moments: Mapping[str, Sequence[Item]]) -> Memory:
    """What is always there, with what is there at the worst of the moments."""
    worst = max(moments, key=lambda moment: sum(item.bytes for item in moments[moment]))
    return Memory(of, capacity, worst, tuple(item for item in (*always, *moments[worst]) if item.bytes))


def gib(count: int) -> str:
    """Bytes for people."""
    for size, unit in ((GIB, "GiB"), (1 << 20, "MiB")):
        if count >= size // 10:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"


def amount(count: int) -> str:
    """A number of parameters for people: 8.29 B, 632 M, 323 K."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
