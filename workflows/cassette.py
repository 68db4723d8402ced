"""`mmsearch cassette info|merge|prune`: look at recorded calls, put cassettes together, drop recordings.

Always true: sources are not changed; of two recordings of one call the earliest stays; what is written anew is there
before what it replaces goes, so that an interrupted command loses nothing that it was to keep, and the same command
again ends where it would have. `merge` and `prune` hold the cassettes that they work on in memory, pictures and all.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from actors.search.store.parts import Recording, earliest, part_names, read_part, write_parts
from actors.search.store.records import Call
from cluster.errors import UserError
from cluster.storage import Folder

ROWS_PER_PART = 1000
_SHOWN = 5  # conflicts that are named one by one
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds


@dataclass(frozen=True)
class Info:
    """What a cassette holds. `calls`: different ones; `recordings`: rows, repeated ones included."""

    folder: str
    parts: int
    bytes: int
    recordings: int
    calls: int
    conflicts: int  # calls that were answered differently at different times
    by_tool: dict[str, int]  # calls
    by_provider: dict[str, int]
    by_kind: dict[str, int]
    first_at: float  # unix seconds
    last_at: float
    cost_usd: float  # that all calls had

    def __str__(self) -> str:
        repeated = self.recordings - self.calls
        lines = [
            f"{self.folder}: {_many(self.calls, 'call')} in {_many(self.parts, 'part')}, {_bytes(self.bytes)}",
            f"  recorded   {_day(self.first_at)} to {_day(self.last_at)}, for {self.cost_usd:.4f} USD",
        ]
        if repeated:
            lines.append(f"  repeated   {repeated}, {self.conflicts} with another answer (the earliest holds)")
        for title, counts in (("tools", self.by_tool), ("providers", self.by_provider), ("kinds", self.by_kind)):
            lines.append(f"  {title:<10} " + ", ".join(f"{name or '-'} {n}" for name, n in counts.items()))
        return "\n".join(lines)


@dataclass(frozen=True)
class Merged:
    """What `merge` did. `taken`: recordings from each source, in order; `conflicts`: calls, as JSON text."""

    target: str
    sources: tuple[str, ...]
    taken: tuple[int, ...]
    calls: int
    repeated: int
    conflicts: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.target}: {_many(self.calls, 'call')}"]
        lines += [f"  {n:>8}  from {source}" for source, n in zip(self.sources, self.taken, strict=True)]
        lines.append(f"  {self.repeated:>8}  recorded more than once")
        lines.append(f"  {len(self.conflicts):>8}  of the calls answered differently (the earliest holds)")
        lines += [f"            {call[:160]}" for call in self.conflicts[:_SHOWN]]
        return "\n".join(lines)


@dataclass(frozen=True)
class Pruned:
    """What `prune` did: different calls, and bytes of all parts."""

    folder: str
    kept: int
    removed: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        sizes = f"{_bytes(self.bytes_before)} before, {_bytes(self.bytes_after)} now"
        return f"{self.folder}: {_many(self.removed, 'call')} removed, {self.kept} kept; {sizes}"


# --- the commands -------------------------------------------------------------------------------------------


def info(folder: str) -> Info:
    """Raises UserError where there is no cassette, or a part of it cannot be read."""
    place, names = _cassette(folder)
    rows = [row for name in names for row in read_part(place, name, blobs=False)]
    calls = earliest(rows)
    sizes = place.sizes()
    return Info(
        folder=place.address,
        parts=len(names),
        bytes=sum(sizes[name] for name in names),
        recordings=len(rows),
        calls=len(calls),
        conflicts=len(_conflicts(rows)),
        by_tool=_counted(row.tool for row in calls.values()),
        by_provider=_counted(_answered_by(row) for row in calls.values()),
        by_kind=_counted(row.answer.kind.value for row in calls.values()),
        first_at=min((row.answer.at for row in rows), default=0.0),
        last_at=max((row.answer.at for row in rows), default=0.0),
        cost_usd=sum(row.answer.cost_usd for row in calls.values()),
    )


def merge(sources: Sequence[str], target: str, rows_per_part: int = ROWS_PER_PART) -> Merged:
    """Everything in `sources`, and what `target` has already, as sorted parts in `target`.

    Merging the same recordings gives the same files whatever the order of the sources. Raises UserError.
    """
    if not sources:
        raise UserError("Nothing to merge: name at least one cassette to read.")
    if rows_per_part < 1:
        raise UserError(f"A part has at least one row, not {rows_per_part}.")
    into = Folder(target)
    read = [_cassette(source) for source in sources if Folder(source) != into]
    if (names := part_names(into)) or not read:
        read.append(_cassette(target))
    into.ensure_writable()
    rows_of = [[row for name in names for row in read_part(place, name, blobs=True)] for place, names in read]
    rows = [row for rows in rows_of for row in rows]
    calls = earliest(rows)
    _replace_parts(into, names, list(calls.values()), rows_per_part)
    return Merged(
        target=into.address,
        sources=tuple(place.address for place, _ in read),
        taken=tuple(map(len, rows_of)),
        calls=len(calls),
        repeated=len(rows) - len(calls),
        conflicts=tuple(_conflicts(rows)),
    )


def prune(
    folder: str,
    older_than: str = "",
    tool: str = "",
    limit: int | None = None,
    *,
    now: float | None = None,
    rows_per_part: int = ROWS_PER_PART,
) -> Pruned:
    """Drops recordings: those older than `older_than`, an age as in 30d or 12h or a day as in 2026-01-31; of the calls
    that are left all but the newest `limit`. `tool`: other tools' recordings stay; given alone, all of this tool's go.

    Raises UserError for what cannot be understood, for no condition at all, and for a tool without recordings.
    """
    if not older_than and not tool and limit is None:
        raise UserError("Nothing to prune by: give an age (--older-than 30d), a tool, or a limit of calls to keep.")
    if limit is not None and limit < 0:
        raise UserError(f"The limit is {limit} and must be 0 or more.")
    place, names = _cassette(folder)
    place.ensure_writable()
    rows = [row for name in names for row in read_part(place, name, blobs=True)]
    before, bytes_before = earliest(rows), _size(place)
    others = [row for row in rows if tool and row.tool != tool]
    if len(others) == len(rows):
        tools = ", ".join(sorted({row.tool for row in rows}))
        raise UserError(f"There is no recording of {tool} in {place.address}; it has {tools}.")
    since = _instant(older_than, time.time() if now is None else now) if older_than else -math.inf
    staying = earliest(row for row in rows if row.answer.at >= since and (row.tool == tool or not tool))
    newest = sorted(staying.values(), key=lambda row: (-row.answer.at, row.key))
    if limit is None and not older_than:
        limit = 0
    kept = earliest([*others, *newest[:limit]])
    _replace_parts(place, names, list(kept.values()), rows_per_part)
    return Pruned(place.address, len(kept), len(before) - len(kept), bytes_before, _size(place))


# --- inside -------------------------------------------------------------------------------------------------


def _cassette(address: str) -> tuple[Folder, list[str]]:
    """The folder and its parts; there is at least one."""
    folder = Folder(address)
    names = part_names(folder)
    if not names:
        raise UserError(f"There is no cassette in {folder.address}: it holds no part-*.parquet.")
    return folder, names


def _replace_parts(folder: Folder, old: Sequence[str], rows: list[Recording], rows_per_part: int) -> None:
    """`rows` in place of the parts `old`; parts that others have written meanwhile stay."""
    new = write_parts(folder, rows, rows_per_part)
    for name in sorted(set(old) - set(new)):
        folder.delete(name)


def _answered_by(row: Recording) -> str:
    """The provider's name; where the answer does not carry it, as boxes do not, the one that was to be asked."""
    return row.answer.provider or next(iter(Call.parse(row.call).providers), "")


def _conflicts(rows: Sequence[Recording]) -> list[str]:
    """The calls that were answered with different bodies, as JSON text, by key."""
    bodies: dict[str, set[bytes]] = {}
    for row in rows:
        bodies.setdefault(row.key, set()).add(row.answer.body)
    return [call for key, call in sorted({row.key: row.call for row in rows}.items()) if len(bodies[key]) > 1]


def _instant(text: str, now: float) -> float:
    """Unix seconds of `30d` before `now`, or of a day's beginning in UTC."""
    age = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if age:
        return now - float(age[1]) * _UNITS[age[2]]
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise UserError(f"{text!r} is no age like 30d or 12h (s, m, h, d, w) and no day like 2026-01-31.") from None


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _size(folder: Folder) -> int:
    sizes = folder.sizes()
    return sum(sizes[name] for name in part_names(folder))


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _bytes(n: int) -> str:
    return f"{n / (1 << 20):.1f} MiB" if n >= 1 << 20 else f"{n / 1024:.1f} KiB"
