"""The rows behind an index: a file in Arrow's IPC format, written in batches and read by row number.

Reading maps the file into memory and copies nothing but the row that is asked for, so that a process holds none of
the corpus and all processes of a machine share its pages.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

# large_ types: offsets of 64 bits, so that no batch is too long
PASSAGE = pa.schema([("title", pa.large_string()), ("url", pa.large_string()), ("text", pa.large_string())])
PICTURE = PASSAGE.append(pa.field("thumbnail", pa.large_binary()))


class RowWriter:
    """Rows of one schema, in order. A context manager; the file is whole once it has been left."""

    def __init__(self, path: Path, schema: pa.Schema, batch_rows: int) -> None:
        self.count = 0
        self._schema, self._batch_rows = schema, batch_rows
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._digest = hashlib.sha256()
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
        finally:
            self._file.close()

    def add(self, **row: Any) -> None:
        self._waiting.append(row)
        for name in self._schema.names:
            value = row[name] or b""
            value = value.encode("utf-8", errors="surrogatepass") if isinstance(value, str) else value
            self._digest.update(b"%d\0" % len(value) + value)
        self.count += 1
        if len(self._waiting) == self._batch_rows:
            self._flush()

    @property
    def digest(self) -> str:
        """Of the rows so far, in hex."""
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self._schema))
            self._waiting.clear()


class RowFile:
    """Rows by number. Any number of threads may read."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._batch_rows = self._batches[0].num_rows if self._batches else 1
        self._count = sum(batch.num_rows for batch in self._batches)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < self._count:
            raise IndexError(number)
        batch, row = divmod(number, self._batch_rows)  # all batches but the last are of one length
        return self._batches[batch].slice(row, 1).to_pylist()[0]
