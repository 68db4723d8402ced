"""What a row of somebody's Parquet file asks: its text, its pictures, and the right answers if it has any.

    question   text, or a conversation [{role, content}] whose last turn of the user is asked (`prompt` of FVQA,
               papers.md 3.1, and of this project's datasets); without its `<image>` marks
    id         text or number, or `data_id`
    image, images   bytes | {bytes, path} | path | http(s) address | a list of these; `image` comes first
    image_refs      [{sha256, width, height}] beside `images`, for pictures that lie in the run's blobs
    answers | answer | reward_model   text | list of texts | {ground_truth, candidate_answers}

Always true: whatever a row holds, it becomes one row of `ASKED`; what cannot be asked says why in `problem`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cluster.errors import UserError

MAX_CHARS = 100_000  # of a question: no episode takes more
QUESTION, ID, PICTURES, REFS = ("question", "prompt"), ("id", "data_id"), ("image", "images"), "image_refs"
RIGHT = ("right_answers", "answers", "answer", "reward_model")

PICTURE = pa.struct(
    [
        ("bytes", pa.large_binary()),
        ("where", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
ASKED = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("question", pa.string()),
        ("pictures", pa.list_(PICTURE)),
        ("right_answers", pa.list_(pa.string())),
        ("problem", pa.string()),
    ]
)


class BadRow(ValueError):
    """A row that cannot be asked."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a file mean what; "" for none."""

    question: str
    id: str
    pictures: tuple[str, ...]
    refs: str
    right: str

    @property
    def read(self) -> list[str]:
        """What must be read of a file."""
        return [name for name in (self.question, self.id, *self.pictures, self.refs, self.right) if name]


def columns_of(names: Collection[str], where: str, question: str | None = None) -> Columns:
    """`names`: of a file's columns; `question`: the one that a person named. Raise `UserError` without a question."""
    wanted = (question,) if question else QUESTION
    asked = _first(wanted, names)
    if not asked:
        raise UserError(
            f"{where} has no column {' or '.join(wanted)}; it has {', '.join(names) or 'none'}:"
            " name the one that is asked with --question-column."
        )
    pictures = tuple(name for name in PICTURES if name in names and name != asked)
    refs = REFS if REFS in names and "images" in pictures else ""
    right = _first([name for name in RIGHT if name != asked], names)
    return Columns(asked, _first([name for name in ID if name != asked], names), pictures, refs, right)


def asked_row(row: Mapping[str, Any], columns: Columns, number: int) -> dict[str, Any]:
    """A row of `ASKED`; `number`: its place in the whole input, from 0."""
    problem, text, pictures = "", "", []
    try:
        text = _text(row[columns.question], columns.question)
        pictures = list(_pictures(row, columns))
    except BadRow as error:
        problem = str(error)
    asked = {
        "row": number,
        "question": text,
        "pictures": pictures,
        "right_answers": _right(row.get(columns.right)) if columns.right else [],
        "problem": problem,
    }
    return {"id": str(row[columns.id]) if columns.id else _made_id(number, text, pictures), **asked}


def _first(wanted: Sequence[str], names: Collection[str]) -> str:
    return next((name for name in wanted if name in names), "")


def _text(value: Any, column: str) -> str:
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
        value = turns[-1].get("content") if turns else None
    if not isinstance(value, str):
        raise BadRow(f"{column} is {_shown(value)}, not a text")
    text = value.replace("<image>", "").strip()
    if not text:
        raise BadRow(f"{column} has no text")
    if len(text) > MAX_CHARS:
        raise BadRow(f"{column} has {len(text)} characters, over the limit of {MAX_CHARS}")
    return text


@dataclass(frozen=True)
class _Picture:
    """One of a row's pictures: its bytes, or where they are, or what they are called in the run's blobs."""

    bytes: bytes | None = None
    where: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None


def _pictures(row: Mapping[str, Any], columns: Columns) -> Iterator[dict[str, Any]]:
    number = 0
    refs = row[columns.refs] if columns.refs else None
    refs = refs if isinstance(refs, list) else []
    for column in columns.pictures:
        value = row[column]
        values = value if isinstance(value, list) else [] if value is None else [value]
        for i, one in enumerate(values):
            number += 1
            yield asdict(_picture(one, number, refs[i] if column == "images" and i < len(refs) else None))


def _picture(value: Any, number: int, ref: Any) -> _Picture:
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes) and value:
        return _Picture(bytes=value)
    if isinstance(value, str) and value.strip():
        return _Picture(where=value.strip())
    if value is None and isinstance(ref, Mapping):
        try:
            return _Picture(sha256=str(ref["sha256"]), width=int(ref["width"]), height=int(ref["height"]))
        except (KeyError, TypeError, ValueError):
            raise BadRow(f"image {number} has a reference that is none") from None
    raise BadRow(f"image {number} is {_shown(value)}, not bytes, a path or an address")


def _right(value: Any) -> list[str]:
    """The right answers, as far as there are any that can be read: nothing depends on them."""
    if isinstance(value, Mapping):
        others = value.get("candidate_answers") or []
        if isinstance(others, str):
            try:
                others = json.loads(others)
            except json.JSONDecodeError:
                others = []
        value = [value.get("ground_truth"), *(others if isinstance(others, list) else [])]
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(one for one in values if isinstance(one, str) and one.strip()))


def _made_id(number: int, text: str, pictures: Sequence[Mapping[str, Any]]) -> str:
    """The row's number and what it holds, for a file without ids."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass"))
    for picture in pictures:
        named = picture["where"] or picture["sha256"] or ""
        digest.update(hashlib.sha256(picture["bytes"] or named.encode(errors="surrogatepass")).digest())
    return f"{number}-{digest.hexdigest()[:12]}"


def _shown(value: Any) -> str:
    """A value in an error: short, whatever it is."""
    words = "empty" if value in (None, "", b"") else repr(value)
    return words if len(words) <= 40 else f"{words[:39]}…"
