"""Questions from a dataset's Parquet shards: FVQA's columns (papers.md 3.1) and this project's own.

    data_id        str, unique                    prompt  [{role, content}]; the user's, without `<image>`
    images         [{bytes}]                      reward_model  {ground_truth, candidate_answers: JSON list of str}
    category, data_source  str                    kind, designed_label, measured_label  str, ours, may be missing
    image_refs     [{sha256, width, height}], ours: of pictures whose bytes are null because they lie in the blobs
    first_tools, tags  [str], ours, may be missing

A row that is no question is dropped, counted and listed with its reason; so is an unreadable shard. Training goes on
without. A picture that the run has already is neither fetched nor decoded, so that a run of thousands of photographs
is soon back after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.seams import ImageRefused, ImageStore
from actors.agent.trajectory import FIRST_TOOLS, ImageRef, Label, Question
from cluster.errors import UserError
from cluster.storage import Folder

BATCH_ROWS = 64  # held in memory at a time, pictures included
ASKED_AT_ONCE = 32  # whether pictures are there: each question is a request, where they lie on s3://
LISTED = 20  # reasons kept in words; all are counted


@dataclass(frozen=True)
class Questions:
    """By id, in order of the shards. `dropped` counts rows; `reasons` describes the first of them."""

    by_id: Mapping[str, Question]
    dropped: int
    reasons: tuple[str, ...]


class NoQuestion(ValueError):
    """A row that cannot be asked."""


def load_questions(folder: Folder, images: ImageStore) -> Questions:
    """All questions of the `*.parquet` files in `folder`; their pictures go to `images`.

    Raise `UserError` for none.
    """
    shards = [name for name in folder.list() if name.endswith(".parquet")]
    if not shards:
        raise UserError(f"there are no questions at {folder}: build the dataset first (`mmsearch dataset build`).")
    by_id: dict[str, Question] = {}
    reasons: list[str] = []
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        for shard in shards:
            number = 0
            try:
                for number, (row, known) in enumerate(_rows(folder, shard, images, pool)):
                    try:
                        question = question_of(row, known)
                        if question.id in by_id:
                            raise NoQuestion(f"data_id {question.id!r} occurs twice")
                        by_id[question.id] = question
                    except NoQuestion as problem:
                        reasons.append(f"{shard} row {number}: {problem}")
            except (OSError, pa.ArrowException) as error:
                reasons.append(f"{shard}: unreadable from row {number} on: {str(error).splitlines()[0]}")
    if not by_id:
        raise UserError(f"none of the rows at {folder} is a question; the first problem: {reasons[0]}")
    return Questions(by_id, len(reasons), tuple(reasons[:LISTED]))


def question_of(row: Mapping[str, Any], images: ImageStore) -> Question:
    """Raise `NoQuestion` with the column that is wrong."""
    reward = row.get("reward_model") or {}
    return Question(
        id=_text(row, "data_id"),
        text=_asked(row),
        images=tuple(_image(images, row, i) for i in range(len(row.get("images") or ()))),
        answers=_answers(reward),
        designed_label=_label(row, "designed_label"),
        measured_label=_label(row, "measured_label"),
        category=row.get("category") or "",
        kind=row.get("kind") or "",
        source=row.get("data_source") or "",
        first_tools=_first_tools(row),
        tags=_words(row, "tags"),
    )


def _rows(
    folder: Folder, shard: str, images: ImageStore, pool: Executor
) -> Iterator[tuple[dict[str, Any], ImageStore]]:
    """Rows, each with the store that knows which of its pictures are there."""
    with folder.open(shard) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
            rows = batch.to_pylist()
            known = _Known(images, rows, pool)
            yield from ((row, known) for row in rows)


class _Known:
    """An `ImageStore` that was asked at once which pictures of some rows it has."""

    def __init__(self, images: ImageStore, rows: Sequence[Mapping[str, Any]], pool: Executor) -> None:
        self.put, self.get, self._ask = images.put, images.get, images.has
        refs = [ref for row in rows for ref in _left_out(row)]
        self._there = dict(zip(refs, pool.map(images.has, refs), strict=True))

    def has(self, ref: ImageRef) -> bool:
        return self._there[ref] if ref in self._there else self._ask(ref)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise NoQuestion(f"{column} is {value!r}, not a text")
    return value


def _words(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """A list of words; none where a foreign file has something else under this name."""
    value = row.get(column)
    return tuple(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else ()


def _first_tools(row: Mapping[str, Any]) -> tuple[str, ...]:
    named = _words(row, "first_tools")
    unknown = [name for name in named if name not in FIRST_TOOLS]
    if unknown:
        raise NoQuestion(f"first_tools has {unknown[0]!r}; accepted: {', '.join(FIRST_TOOLS)}")
    return named


def _asked(row: Mapping[str, Any]) -> str:
    turns = [t for t in row.get("prompt") or () if isinstance(t, Mapping) and t.get("role") == "user"]
    text = str(turns[-1].get("content") or "").replace("<image>", "").strip() if turns else ""
    if not text:
        raise NoQuestion("prompt has no text of the user")
    return text


def _answers(reward: Any) -> tuple[str, ...]:
    if not isinstance(reward, Mapping):
        raise NoQuestion(f"reward_model is {reward!r}")
    candidates = reward.get("candidate_answers") or "[]"
    try:
        listed = json.loads(candidates) if isinstance(candidates, str) else list(candidates)
    except json.JSONDecodeError:
        raise NoQuestion(f"candidate_answers is not JSON: {candidates[:40]!r}") from None
    answers = [a for a in (reward.get("ground_truth"), *listed) if isinstance(a, str) and a.strip()]
    if not answers:
        raise NoQuestion("reward_model has no answer")
    return tuple(dict.fromkeys(answers))


def _image(images: ImageStore, row: Mapping[str, Any], number: int) -> ImageRef:
    """By its bytes, or, where the dataset left those in the blobs, by its reference."""
    data, refs = _bytes(row["images"][number]), row.get("image_refs") or ()
    try:
        if isinstance(data, bytes):
            return images.put(data)
        if data is None and number < len(refs):
            ref = ImageRef(**refs[number])
            if images.has(ref):
                return ref
            raise NoQuestion(f"image {number}, {ref.sha256[:12]}, cannot be found")
    except (ImageRefused, TypeError) as error:
        raise NoQuestion(f"image {number}: {error}") from error
    raise NoQuestion(f"image {number} has no bytes")


def _left_out(row: Mapping[str, Any]) -> Iterator[ImageRef]:
    """References to those pictures of a row that came without their bytes."""
    for picture, ref in zip(row.get("images") or (), row.get("image_refs") or (), strict=False):
        with suppress(TypeError):  # no reference: `_image` says so
            if _bytes(picture) is None:
                yield ImageRef(**ref)


def _bytes(picture: Any) -> Any:
    return picture.get("bytes") if isinstance(picture, Mapping) else picture


def _label(row: Mapping[str, Any], column: str) -> Label:
    value = row.get(column) or Label.UNKNOWN.value
    try:
        return Label(value)
    except ValueError:
        raise NoQuestion(f"{column} is {value!r}; accepted: {', '.join(Label)}") from None
