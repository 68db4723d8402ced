"""Recorded calls, replayed: what the world said once, without the world.

    mode              call is recorded     call is not recorded
    live              ask                  ask
    record            replay               ask and record
    replay            replay               CassetteMiss
    replay_or_live    replay               ask

Always true: of two recordings of one call the earliest holds, on every machine the same; what a process in `record`
was answered is what `replay` answers from that process's recordings, byte for byte; failures of the world are never
recorded, only what a provider holds against the policy's own words is.

Each process records into parts of its own (`parts`), so several record into one folder side by side; they see each
other's parts at the next `load`. Whoever runs the cassette calls `flush` now and then, and at the end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, SupportsIndex, TypeVar, cast

from actors.agent.seams import Clock, ImageMissing
from actors.agent.trajectory import Tool
from actors.search.seams import ErrorKind, ProviderError
from actors.search.store.parts import Recording, part_names, read_blobs, read_part, write_part
from actors.search.store.records import Answer, Call, Codec, Remembered, Unreadable
from actors.search.store.settings import CassetteSettings, Mode
from cluster.errors import UserError
from cluster.storage import Folder

log = logging.getLogger(__name__)
T = TypeVar("T")


class Move(StrEnum):
    """What to do with one call."""

    REPLAY = "replay"
    ASK = "ask"
    ASK_AND_RECORD = "ask_and_record"
    REFUSE = "refuse"


def move(mode: Mode, recorded: bool) -> Move:
    """The table above."""
    if mode is Mode.LIVE:
        return Move.ASK
    if recorded:
        return Move.REPLAY
    return {Mode.RECORD: Move.ASK_AND_RECORD, Mode.REPLAY: Move.REFUSE, Mode.REPLAY_OR_LIVE: Move.ASK}[mode]


class CassetteMiss(ProviderError):
    """`replay` was asked for a call that nobody recorded. `call`: tool and arguments on one line."""

    def __init__(self, call: str) -> None:
        super().__init__(ErrorKind.NOT_RECORDED, f"not recorded: {call}")
        self.call = call

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return (CassetteMiss, (self.call,))


def worth_recording(call: Call, error: ProviderError) -> bool:
    """Whether the provider would say the same again because of what the policy wrote."""
    return error.kind is ErrorKind.BAD_REQUEST and call.tool == Tool.TEXT_SEARCH


@dataclass(frozen=True)
class CassetteCounts:
    """Since the cassette was opened. `unrecorded`: answers in `record` that could not be stored."""

    hits: int = 0
    misses: int = 0
    recorded: int = 0
    unrecorded: int = 0
    saved_usd: float = 0.0  # what the replayed answers had cost

    @property
    def hit_rate(self) -> float:
        """Of the calls that looked for a recording; 0 where none did."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


@dataclass(frozen=True)
class _Entry:
    """A recording, and where its blobs are: in row `place` of `part`, or, before it is written, with the recording."""

    recording: Recording
    part: str = ""
    place: int = 0


class Cassette:
    """Recordings by key. Calls belong to one event loop; `load` and `flush` may run in another thread.

    Calls and answers are held in memory, pictures are read when they are replayed.
    """

    def __init__(
        self, folder: Folder | None, mode: Mode, codec: Codec, *, rows_per_part: int = 1000, wall: Clock = time.time
    ) -> None:
        if folder is None and mode is not Mode.LIVE:
            raise UserError(f"A cassette in mode {mode} needs a folder.")
        self._folder, self.mode, self._codec = folder, mode, codec
        self._rows_per_part, self._wall = rows_per_part, wall
        self._entries: dict[str, _Entry] = {}
        self._unwritten: dict[str, Recording] = {}
        self._parts: set[str] = set()
        self._changing = threading.Lock()  # around the three above, never held over I/O
        self._storing = threading.Lock()  # one `load` or `flush` at a time
        self.counts = CassetteCounts()

    def __len__(self) -> int:
        return len(self._entries)

    # --- one call -------------------------------------------------------------------------------------------

    async def answer(
        self, call: Call, ask: Callable[[], Awaitable[T]], *, cost_usd: Callable[[], float] = lambda: 0.0
    ) -> tuple[T, bool]:
        """The answer to `call`, and whether it was replayed. `T` is one of the values that the codec knows.

        `cost_usd` is read after `ask` has answered. Raises what `ask` raises, a recorded ProviderError, CassetteMiss,
        and ProviderError where a recording cannot be read.
        """
        key = call.key
        entry = self._entries.get(key)
        step = move(self.mode, entry is not None)
        if self.mode is not Mode.LIVE:
            self._count(hits=int(entry is not None), misses=int(entry is None))
        if step is Move.REFUSE:
            raise CassetteMiss(call.short())
        if entry is not None and step is Move.REPLAY:
            return cast(T, await self._replayed(entry)), True
        if step is Move.ASK:
            return await ask(), False
        return await self._asked(call, key, ask, cost_usd), False

    async def _replayed(self, entry: _Entry) -> Remembered:
        self._count(saved_usd=entry.recording.answer.cost_usd)
        try:
            if entry.recording.blob_names:  # a file is read, and pictures are decoded and stored
                value = await asyncio.to_thread(lambda: self._codec.decode(self._whole(entry)))
            else:
                value = self._codec.decode(entry.recording.answer)
        except (Unreadable, UserError) as error:
            raise ProviderError(ErrorKind.SCHEMA, f"the recording cannot be read: {error}") from error
        except OSError as error:
            raise ProviderError(ErrorKind.TRANSIENT, f"the cassette cannot be read: {error}") from error
        if isinstance(value, ProviderError):
            raise value
        return value

    async def _asked(self, call: Call, key: str, ask: Callable[[], Awaitable[T]], cost_usd: Callable[[], float]) -> T:
        started = time.monotonic()
        try:
            value = cast(Remembered, await ask())
        except ProviderError as error:
            if worth_recording(call, error):
                await self._record(call, key, error, time.monotonic() - started, cost_usd())
            raise
        before = await self._record(call, key, value, time.monotonic() - started, cost_usd())
        return cast(T, value if before is None else await self._replayed(before))

    async def _record(
        self, call: Call, key: str, value: Remembered, latency_s: float, cost_usd: float
    ) -> _Entry | None:
        """Keeps the recording for the next flush; what a sibling recorded meanwhile, if one did, holds instead."""
        try:
            answer = await asyncio.to_thread(
                self._codec.encode, value, at=self._wall(), cost_usd=cost_usd, latency_s=latency_s
            )
        except (ValueError, OSError, ImageMissing) as error:
            log.warning("an answer cannot be recorded (%s): %s", error, call.short())
            self._count(unrecorded=1)
            return None
        recording = Recording(key, call.tool, call.text, answer, tuple(sorted(answer.blobs)))
        with self._changing:
            before = self._entries.get(key)
            if before is None:
                self._entries[key] = _Entry(recording)
                self._unwritten[key] = recording
        self._count(recorded=int(before is None))
        return before

    # --- what is recorded -----------------------------------------------------------------------------------

    def find(self, call: Call) -> Answer | None:
        """The recorded answer, pictures included. Reads the part's file where there are some: PartDamaged, OSError."""
        entry = self._entries.get(call.key)
        return None if entry is None else self._whole(entry)

    def calls(self) -> Iterator[Call]:
        """All recorded calls, by key. Raises Unreadable."""
        for key in sorted(self._entries):
            yield Call.parse(self._entries[key].recording.call)

    def _whole(self, entry: _Entry) -> Answer:
        recording = entry.recording
        if not recording.blob_names or not entry.part:
            return recording.answer
        assert self._folder is not None  # a part lies in it
        return replace(recording.answer, blobs=read_blobs(self._folder, entry.part, entry.place))

    # --- the folder -----------------------------------------------------------------------------------------

    def load(self) -> int:
        """Reads the parts that were not read yet; how many. Raises PartDamaged, OSError."""
        if self._folder is None or self.mode is Mode.LIVE:
            return 0
        with self._storing:
            new = [name for name in part_names(self._folder) if name not in self._parts]
            for name in new:
                self._take(name, read_part(self._folder, name, blobs=False))
            return len(new)

    def flush(self) -> int:
        """Writes what was recorded since the last time; how many rows. What cannot be written waits for the next time.

        Raises OSError and UserError.
        """
        if self._folder is None:
            return 0
        with self._storing:
            written = 0
            while batch := self._next_batch():
                name, rows = write_part(self._folder, batch)
                with self._changing:
                    for row in rows:
                        del self._unwritten[row.key]
                self._take(name, [replace(row, answer=replace(row.answer, blobs={})) for row in rows])
                written += len(rows)
            return written

    def _next_batch(self) -> list[Recording]:
        with self._changing:
            return list(self._unwritten.values())[: self._rows_per_part]

    def _take(self, name: str, rows: list[Recording]) -> None:
        """Enters a part's rows: those of calls that are new, or earlier than what is known, or the same."""
        with self._changing:
            self._parts.add(name)
            for place, row in enumerate(rows):
                known = self._entries.get(row.key)
                if known is None or row.order <= known.recording.order:
                    self._entries[row.key] = _Entry(row, name, place)

    def _count(self, **more: Any) -> None:
        counts = self.counts
        self.counts = replace(counts, **{name: getattr(counts, name) + value for name, value in more.items()})


def open_cassette(settings: CassetteSettings, codec: Codec, *, wall: Clock = time.time) -> Cassette:
    """The configured cassette with its recordings read. Raises UserError, also where there is nothing to replay."""
    folder = Folder(settings.folder) if settings.mode is not Mode.LIVE else None
    if folder is not None and settings.mode is not Mode.REPLAY:
        folder.ensure_writable()
    cassette = Cassette(folder, settings.mode, codec, rows_per_part=settings.rows_per_part, wall=wall)
    cassette.load()
    if settings.mode is Mode.REPLAY and not len(cassette):
        raise UserError(f"There are no recordings in {settings.folder} to replay; record some with mode=record.")
    return cassette
