"""Where the questions lie: one Parquet file, or a folder of them, local or s3://; their rows in one fixed order.

A row is known by its number: files by name, rows as they stand. Always true of a `Source`: every file has the columns
that it was asked for, and no two rows have one id; the numbers hold as long as its fingerprint does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.predict.columns import ASKED, Columns, asked_row, columns_of

READ_ROWS = 16  # held in memory at a time, pictures included
AT_ONCE = 32  # files looked at
SUFFIX = ".parquet"


@dataclass(frozen=True)
class Unit:
    """Rows that are read together: a row group of a file, from number `first` on, but for those that are `done`."""

    folder: str
    file: str
    group: int
    first: int
    done: tuple[int, ...]
    columns: Columns

    def to_json(self) -> str:
        """As it travels through Ray Data."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """What `to_json` wrote."""
        values = json.loads(text)
        columns = Columns(**{**values["columns"], "pictures": tuple(values["columns"]["pictures"])})
        return cls(**{**values, "done": tuple(values["done"]), "columns": columns})


@dataclass(frozen=True)
class File:
    """A Parquet file in the source's folder, and the rows of its row groups."""

    name: str
    groups: tuple[int, ...]
    columns: Columns


@dataclass(frozen=True)
class Source:
    """All questions. `whole_folder`: the folder was given, not a file in it."""

    folder: Folder
    files: tuple[File, ...]
    whole_folder: bool

    @property
    def rows(self) -> int:
        return sum(sum(file.groups) for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Of what was found: files' names, sizes and ends, where Parquet keeps its statistics."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{(self.folder / file.name).fingerprint()}\0".encode())
        return digest.hexdigest()

    def units(self, done: Collection[int]) -> Iterator[Unit]:
        """What there is to read when the rows of these numbers are done."""
        first = 0
        for file in self.files:
            for group, rows in enumerate(file.groups):
                over = tuple(number for number in range(first, first + rows) if number in done)
                if len(over) < rows:
                    yield Unit(self.folder.address, file.name, group, first, over, file.columns)
                first += rows

    def check_ids(self) -> None:
        """Raise `UserError` for a row without an id, or for two with one, where there is such a column."""
        seen: dict[str, int] = {}
        number = 0
        for file in self.files:
            column = file.columns.id
            if not column:
                return
            with self.folder.open(file.name) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(columns=[column]):
                    for value in batch.column(0).to_pylist():
                        _check_id(value, column, number, seen)
                        number += 1


def find(address: str, question: str | None = None) -> Source:
    """The questions at `address`; `question`: the column that is asked. Raise `UserError` with what is wrong."""
    folder, names, whole_folder = _located(address)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        files = tuple(pool.map(lambda name: _file(folder, name, question), names))
    named = {(file.columns.question, file.columns.id) for file in files}
    if len(named) > 1:
        raise UserError(
            f"The files at {address} name their questions or their ids differently: {', '.join(map(str, named))};"
            " predict them one by one."
        )
    if not sum(sum(file.groups) for file in files):
        raise UserError(f"There are no rows at {address}.")
    return Source(folder, files, whole_folder)


def read(unit: Unit) -> Iterator[pa.Table]:
    """The unit's rows as `ASKED`, a few at a time. Raise OSError and pyarrow's errors where the file is damaged."""
    done = set(unit.done)
    number = unit.first
    with Folder(unit.folder).open(unit.file) as stream:
        batches = pq.ParquetFile(stream).iter_batches(READ_ROWS, row_groups=[unit.group], columns=unit.columns.read)
        for batch in batches:
            asked: list[dict[str, Any]] = []
            for row in range(batch.num_rows):
                if number not in done:
                    asked.append(_asked(batch.slice(row, 1), unit.columns, number))
                number += 1
            if asked:
                yield pa.Table.from_pylist(asked, schema=ASKED)


def parent_of(folder: Folder) -> Folder:
    """What a file or folder lies in. Raise `UserError` for a bucket or a root, which lie in nothing."""
    plain, mark, query = folder.address.partition("?") if not folder.is_local else (folder.address, "", "")
    head, _, name = plain.rstrip("/").rpartition("/")
    if not name or head in ("", "s3:/"):
        raise UserError(f"{folder} lies in no folder.")
    return Folder(f"{head}{mark}{query}")


def _located(address: str) -> tuple[Folder, list[str], bool]:
    """The folder, the names of Parquet files in it, and whether it was given itself.

    Names that begin with `.` or `_` are nobody's data.
    """
    folder = Folder(address)
    found = folder.sizes()
    if "" in found:
        return parent_of(folder), [folder.name], False
    names = sorted(name for name in found if name.endswith(SUFFIX) and not _hidden(name))
    if not names:
        there = "no Parquet files in" if found else "nothing at"
        raise UserError(f"There is {there} {folder}: give a Parquet file, or a folder of them, local or s3://.")
    return folder, names, True


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _file(folder: Folder, name: str, question: str | None) -> File:
    try:
        with folder.open(name) as stream:
            file = pq.ParquetFile(stream)
            groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            names = file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{folder}/{name} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from error
    return File(name, groups, columns_of(names, f"{folder}/{name}", question))


def _check_id(value: Any, column: str, number: int, seen: dict[str, int]) -> None:
    """`seen`: the rows of the ids before."""
    if value is None or str(value) == "":
        raise UserError(f"Row {number} has no {column}: give every row one, or leave the column out.")
    if (before := seen.setdefault(str(value), number)) != number:
        raise UserError(
            f"Rows {before} and {number} have the same {column}, {str(value)!r}:"
            " give every row its own, or leave the column out."
        )


def _asked(row: pa.RecordBatch, columns: Columns, number: int) -> dict[str, Any]:
    try:
        [values] = row.to_pylist()
        return asked_row(values, columns, number)
    except UnicodeDecodeError:
        said = {"question": "", "pictures": [], "right_answers": [], "problem": "a text of this row is not UTF-8"}
        return {"row": number, "id": str(number), **said}
