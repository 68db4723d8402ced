"""Parquet files in FVQA's columns (as released, or as this project writes them) as a source of questions.

They have no teacher. A file, a group of rows or a row that cannot be read is dropped with its reason, not the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.seams import ImageStore
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.dataset.source import Candidate, Dropped, Part
from workflows.grpo.questions import BATCH_ROWS, NoQuestion, question_of

if TYPE_CHECKING:
    from workflows.settings import Settings


class ParquetSource:
    """Folders of `*.parquet` files, local or s3://, by split; a split that is not given has no questions."""

    def __init__(self, settings: Settings, train: str | None = None, test: str | None = None) -> None:
        self._folders = {"train": train, "test": test}

    def units(self, part: Part) -> list[dict[str, Any]]:
        """One unit a group of rows: what can be read, and can fail, by itself."""
        address = self._folders[part.split]
        if address is None or part.taught:
            return []
        folder = Folder(address)
        names = [name for name in folder.files() if name.endswith(".parquet")]
        if not names:
            raise UserError(f"There are no Parquet files at {folder}, which dataset.kwargs names for {part.split}.")
        units: list[dict[str, Any]] = []
        for name in names:
            unit = {"folder": folder.address, "file": name, "problem": ""}
            try:
                with folder.open(name) as stream:
                    groups = pq.ParquetFile(stream).num_row_groups
                units += [{**unit, "group": group} for group in range(groups)]
            except (OSError, pa.ArrowException) as error:
                units.append({**unit, "group": -1, "problem": _line(error)})
        return units

    def read(self, unit: dict[str, Any], images: ImageStore) -> Iterator[Candidate | Dropped]:
        where = f"{unit['file']} group {unit['group']}"
        if unit["problem"]:
            yield Dropped(unit["file"], "unreadable_file", unit["problem"])
            return
        number = 0
        try:
            with Folder(unit["folder"]).open(unit["file"]) as stream:
                file = pq.ParquetFile(stream)
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[unit["group"]]):
                    for row in batch.to_pylist():
                        yield _read_row(row, f"{where} row {number}", images)
                        number += 1
        except (OSError, pa.ArrowException) as error:
            yield Dropped(where, "unreadable_rows", f"from row {number} on: {_line(error)}")


def _read_row(row: dict[str, Any], where: str, images: ImageStore) -> Candidate | Dropped:
    try:
        return Candidate(question_of(row, images))
    except NoQuestion as problem:
        cause = "bad_image" if str(problem).startswith("image ") else "bad_row"
        return Dropped(where, cause, str(problem))


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
