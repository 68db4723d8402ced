"""Rows, files and a stage for the tests of predict."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from workflows.predict.columns import columns_of

PLAIN = columns_of(["question"], "here")


def picture(colour: str = "red", size: int = 40) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(sink, "PNG")
    return sink.getvalue()


def write(path: Path, rows: list[dict[str, Any]], group: int = 1000, schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
    return path


def asked(number: int = 0, question: str = "who founded it?", **changes: Any) -> dict[str, Any]:
    row = {"row": number, "id": f"q{number}", "question": question, "pictures": [], "right_answers": [], "problem": ""}
    return row | changes
