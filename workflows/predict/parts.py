"""Answers as they come, in small files beside the output; and the output made of them when all are there.

    answers.parquet.parts/  identity.json      what the rows follow from: only the same may be added
                            part-<hex>.parquet  rows that ended about the same time

Always true: a row that `save` has returned for is on storage; a part is whole or not there; a row that is in two parts
(its actor died after writing it) is in the output once; the output appears whole, in the order of the questions.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Folder
from workflows.predict.answers import ANSWERS, PARTS, ROW

IDENTITY = "identity.json"
AT_ONCE = 32  # parts read
CHUNK = 1024  # rows of the output put together at a time
OPEN_PARTS = 64  # kept in memory meanwhile; rows of one chunk ended at about the same time

Sleep = Callable[[float], Awaitable[None]]


class PartWriter:
    """Writes rows of `PARTS` that end within `every_s` seconds as one file. For one event loop."""

    def __init__(self, folder: Folder, every_s: float, sleep: Sleep = asyncio.sleep) -> None:
        self._folder, self._every_s, self._sleep = folder, every_s, sleep
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def save(self, row: dict[str, Any]) -> None:
        """Return when the row is on storage. Raise OSError."""
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, saved))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await saved

    async def _write(self) -> None:
        """Until nobody waits."""
        while self._waiting:
            await self._sleep(self._every_s)
            taken, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._put, [row for row, _ in taken])
            except Exception as error:  # it is those who wait that can say what was lost
                _settle(taken, error)
            else:
                _settle(taken, None)
        self._writing = None

    def _put(self, rows: list[dict[str, Any]]) -> None:
        sink = BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=PARTS), sink, compression="zstd")
        self._folder.write_bytes(f"part-{uuid.uuid4().hex}.parquet", sink.getvalue())


def _settle(taken: list[tuple[dict[str, Any], asyncio.Future[None]]], error: Exception | None) -> None:
    for _, saved in taken:
        if saved.done():  # who waited for it was cancelled
            continue
        if error is None:
            saved.set_result(None)
        else:
            saved.set_exception(error)


@dataclass(frozen=True)
class Parts:
    """Which row lies where: the parts by name, and for each row, ascending, its part and its place there."""

    folder: Folder
    names: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]

    @classmethod
    def in_folder(cls, folder: Folder) -> Parts:
        """Raise pyarrow's errors for a part that is damaged, which no crash leaves."""
        names = tuple(name for name in folder.list() if name.startswith("part-") and name.endswith(".parquet"))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            numbers = list(pool.map(lambda name: _table(folder, name, [ROW])[ROW].to_numpy(), names))
        none = np.zeros(0, np.int64)
        rows = np.concatenate([none, *numbers])
        part = np.concatenate([none, *(np.full(len(one), i) for i, one in enumerate(numbers))])
        place = np.concatenate([none, *(np.arange(len(one)) for one in numbers)])
        rows, first = np.unique(rows, return_index=True)
        return cls(folder, names, rows, part[first], place[first])

    def tables(self, first: int = 0, last: int | None = None, chunk: int = CHUNK) -> Iterator[pa.Table]:
        """Rows `first` to before `last` in their order, as `ANSWERS`, at most `chunk` at a time."""
        opened: OrderedDict[int, pa.Table] = OrderedDict()
        last = len(self.rows) if last is None else min(last, len(self.rows))
        for start in range(first, last, chunk):
            here = slice(start, min(start + chunk, last))
            part, place = self.part[here], self.place[here]
            taken: list[pa.Table] = []
            for one in np.unique(part).tolist():
                if one not in opened:
                    opened[one] = _table(self.folder, self.names[one])
                opened.move_to_end(one)
                taken.append(opened[one].take(pa.array(place[part == one])))
                while len(opened) > OPEN_PARTS:
                    opened.popitem(last=False)
            yield pa.concat_tables(taken).sort_by(ROW).drop_columns([ROW])


def write_file(tables: Iterator[pa.Table], folder: Folder, name: str, about: Mapping[bytes, bytes]) -> None:
    """One Parquet file of `ANSWERS`, whole or not there; `about` is kept in its schema."""
    with tempfile.TemporaryDirectory(prefix="mmsearch-predict-") as scratch:
        path = Path(scratch) / "whole.parquet"
        with pq.ParquetWriter(path, ANSWERS.with_metadata(dict(about)), compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(dict(about)))
        folder.upload(path, name)


def _table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(BytesIO(folder.read_bytes(name)), columns=columns)
