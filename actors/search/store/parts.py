"""The Parquet files of a cassette: immutable parts of rows sorted by key, named by the sha256 of what they hold.

Always true: a part is whole or not there; the same rows give the same file under the same name, so that writing twice
is writing once and two cassettes are compared by their file names; a part that cannot be read is told by its name,
never passed over. Any Parquet reader shows them: calls and answers are JSON text.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.search.store.records import Answer, Kind
from cluster.errors import UserError
from cluster.storage import Folder

LAYOUT = {b"mmsearch": b"cassette 1"}
ROWS_PER_GROUP = 32  # read together when one row's pictures are wanted
MAX_AT = 253_402_300_800  # unix seconds: the year 10000
_BLOBS, _NAMES_ONLY = "blobs", "blobs.list.element.sha256"
_TORN = (pa.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError)
_BLOB = pa.struct([("sha256", pa.string()), ("data", pa.binary())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("tool", pa.string()),
        ("call", pa.string()),
        ("kind", pa.string()),
        ("body", pa.string()),
        (_BLOBS, pa.list_(pa.field("element", _BLOB))),
        ("provider", pa.string()),
        ("recorded_at", pa.float64()),
        ("cost_usd", pa.float64()),
        ("latency_s", pa.float64()),
    ],
    metadata=LAYOUT,
)


class PartDamaged(UserError):
    """A file of the cassette cannot be read as one."""


@dataclass(frozen=True)
class Recording:
    """One row. `call`: the canonical JSON of the Call; `blob_names`: of the answer's blobs, read or not."""

    key: str
    tool: str
    call: str
    answer: Answer
    blob_names: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[float, bytes, str]:
        """Of two recordings of one call the lesser one holds: the earlier, then by content, the same everywhere."""
        return (self.answer.at, self.answer.body, self.answer.provider)


def earliest(recordings: Iterable[Recording]) -> dict[str, Recording]:
    """One recording per key, sorted by key."""
    best: dict[str, Recording] = {}
    for recording in recordings:
        other = best.get(recording.key)
        if other is None or recording.order < other.order:
            best[recording.key] = recording
    return dict(sorted(best.items()))


def part_names(folder: Folder) -> list[str]:
    """Of the parts in the folder, sorted; other files are none of ours."""
    return [name for name in folder.list() if name.startswith("part-") and name.endswith(".parquet")]


def write_part(folder: Folder, recordings: Iterable[Recording]) -> tuple[str, list[Recording]]:
    """Writes the recordings, blobs included, as one part; its name, and the rows in the order of the file."""
    rows = sorted(recordings, key=lambda row: (row.key, row.order))
    sink = io.BytesIO()
    table = pa.Table.from_pylist([_row(recording) for recording in rows], schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    data = sink.getvalue()
    name = f"part-{hashlib.sha256(data).hexdigest()[:24]}.parquet"
    if not folder.exists(name):
        folder.write_bytes(name, data)
    return name, rows


def write_parts(folder: Folder, recordings: Iterable[Recording], rows_per_part: int) -> list[str]:
    """Writes sorted recordings as parts of `rows_per_part` rows at most; their names."""
    rows = list(recordings)
    starts = range(0, len(rows), rows_per_part)
    return [write_part(folder, rows[start : start + rows_per_part])[0] for start in starts]


def read_part(folder: Folder, name: str, *, blobs: bool) -> list[Recording]:
    """All rows in the order of the file; without `blobs` the answers have none. Raises PartDamaged, OSError."""
    with folder.open(name) as stream:
        file = _opened(folder, name, stream)
        wanted = [_NAMES_ONLY if column == _BLOBS and not blobs else column for column in SCHEMA.names]
        return [_recording(folder, name, row) for row in _rows(folder, name, file, wanted)]


def read_blobs(folder: Folder, name: str, place: int) -> dict[str, bytes]:
    """The blobs of row `place` of a part. Raises PartDamaged, OSError."""
    with folder.open(name) as stream:
        file = _opened(folder, name, stream)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if place < rows:
                try:
                    cells = file.read_row_group(group, columns=[_BLOBS]).column(_BLOBS)
                    return {blob["sha256"]: blob["data"] for blob in cells[place].as_py()}
                except _TORN as error:
                    raise _damaged(folder, name, error) from error
            place -= rows
    raise _damaged(folder, name, IndexError(f"there is no row {place}"))


# --- rows ---------------------------------------------------------------------------------------------------


def _row(recording: Recording) -> dict[str, Any]:
    answer = recording.answer
    return {
        "key": recording.key,
        "tool": recording.tool,
        "call": recording.call,
        "kind": answer.kind.value,
        "body": answer.body.decode(),
        _BLOBS: [{"sha256": name, "data": answer.blobs[name]} for name in sorted(answer.blobs)],
        "provider": answer.provider,
        "recorded_at": answer.at,
        "cost_usd": answer.cost_usd,
        "latency_s": answer.latency_s,
    }


def _opened(folder: Folder, name: str, stream: Any) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(stream)
    except _TORN as error:
        raise _damaged(folder, name, error) from error
    if not file.schema_arrow.equals(SCHEMA) or not (file.schema_arrow.metadata or {}).items() >= LAYOUT.items():
        raise PartDamaged(f"{folder / name} is no part of a cassette that this version reads.")
    return file


def _rows(folder: Folder, name: str, file: pq.ParquetFile, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from file.read(columns=columns).to_pylist()
    except _TORN as error:
        raise _damaged(folder, name, error) from error


def _recording(folder: Folder, name: str, row: dict[str, Any]) -> Recording:
    try:
        answer = Answer(
            Kind(row["kind"]),
            row["body"].encode(),
            provider=row["provider"],
            at=row["recorded_at"],
            cost_usd=row["cost_usd"],
            latency_s=row["latency_s"],
        )
        if not all(map(math.isfinite, (answer.at, answer.cost_usd, answer.latency_s))) or not 0 <= answer.at < MAX_AT:
            raise ValueError(f"recorded at {answer.at}, for {answer.cost_usd} USD, in {answer.latency_s} s")
        names = tuple(blob["sha256"] for blob in row[_BLOBS])
        held = {blob["sha256"]: blob["data"] for blob in row[_BLOBS] if "data" in blob}
        return Recording(row["key"], row["tool"], row["call"], replace(answer, blobs=held), names)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # a kind that is none of ours, or an empty cell
        raise _damaged(folder, name, error) from error


def _damaged(folder: Folder, name: str, error: Exception) -> PartDamaged:
    """What to raise. pyarrow says OSError without a number for torn pages."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error  # the disk or the network, not the file
    told = " ".join(str(error).split())[:200].rstrip(".")
    return PartDamaged(f"{folder / name} cannot be read as part of a cassette: {told}; restore the file or remove it.")
