"""Parquet files as what an index is built from: found, their columns checked first, then read batch by batch.

A file in bad shape stops the build with a sentence that names the file and the column: whoever builds an index wants
the whole corpus in it, and hours later is too late to learn that half was left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import Folder


@dataclass(frozen=True)
class Source:
    """One Parquet file. `name` is "" where `folder` is the address of the file itself."""

    folder: Folder
    name: str

    def __str__(self) -> str:
        return str(self.folder / self.name) if self.name else str(self.folder)


def parquet_files(addresses: Sequence[str]) -> list[Source]:
    """The files that these addresses mean: each a Parquet file or a folder of them, local or s3://.

    In the order given, those of a folder by name. Raises UserError where there is none.
    """
    found: list[Source] = []
    for address in addresses:
        folder = Folder(address)
        names = [name for name in folder.files() if not name or name.endswith(".parquet")]
        if not names:
            raise UserError(f"There are no Parquet files at {folder}.")
        found += [Source(folder, name) for name in names]
    if not found:
        raise UserError("Name at least one Parquet file, or a folder of them.")
    return found


def row_count(files: Sequence[Source]) -> int:
    """Rows of all files, by their footers."""
    total = 0
    for source in files:
        with _opened(source) as stream:
            total += _parquet(source, stream).metadata.num_rows
    return total


def columns_of(source: Source) -> pa.Schema:
    with _opened(source) as stream:
        return _parquet(source, stream).schema_arrow


def the_column(files: Sequence[Source], wanted: str | None, defaults: Sequence[str], what: str) -> str | None:
    """The column that holds `what` in all files: the one that is wanted, else the first default that all have.

    None where nothing is wanted and no default is there. Raises UserError for a wanted one that a file lacks.
    """
    schemas = [(source, columns_of(source)) for source in files]
    if wanted is None:
        return next((name for name in defaults if all(name in schema.names for _, schema in schemas)), None)
    for source, schema in schemas:
        if wanted not in schema.names:
            raise UserError(f"{source} has no column {wanted!r} for {what}; its columns are {_listed(schema.names)}.")
    return wanted


def need_column(files: Sequence[Source], wanted: str | None, defaults: Sequence[str], what: str) -> str:
    """As `the_column`, and it must be there. Raises UserError."""
    found = the_column(files, wanted, defaults, what)
    if found is None:
        names = _listed(columns_of(files[0]).names)
        raise UserError(f"{files[0]} has no column {defaults[0]!r} for {what}; name one: its columns are {names}.")
    return found


def need_strings(files: Sequence[Source], column: str) -> None:
    """Raises UserError where a file's column holds something else than text."""
    for source in files:
        kind = columns_of(source).field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(f"Column {column!r} of {source} holds {kind}, and text is needed.")


def rows(files: Sequence[Source], columns: Sequence[str], batch_rows: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of all files, `batch_rows` at a time at most; no more than a group of rows is held.

    Raises UserError where a file cannot be read to its end.
    """
    for source in files:
        with _opened(source) as stream:
            file = _parquet(source, stream)
            batches = file.iter_batches(batch_rows, columns=list(columns), use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                    found = batch.to_pylist() if batch is not None else None
                except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                    raise UserError(f"{source} cannot be read: {_line(error)}") from error
                if found is None:
                    break
                yield found


def local_url(*parts: str | bytes) -> str:
    """An address for what has none: made from its content, so that it is the same in every index of it."""
    encoded = (part.encode("utf-8", errors="surrogatepass") if isinstance(part, str) else part for part in parts)
    return "local:" + hashlib.sha256(b"\0".join(encoded)).hexdigest()[:20]


def _opened(source: Source):
    try:
        return source.folder.open(source.name)
    except OSError as error:
        raise UserError(f"{source} cannot be opened: {_line(error)}") from error


def _parquet(source: Source, stream: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{source} is not a Parquet file: {_line(error)}") from error


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "none"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
