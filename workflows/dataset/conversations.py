"""Conversations back from Parquet shards, for SFT: what cannot be read is left out, counted and listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.seams import ImageMissing, ImageRefused, ImageStore
from actors.model.expansion import Expanded, ExpansionError, expand
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.dataset.schema import CONVERSATIONS, BadConversation, segments_of

BATCH_ROWS = 64  # held in memory at a time, pictures included
# what a rank needs of a row, and why a row cannot be used ("" when it can)
COLUMNS = pa.schema(
    [
        CONVERSATIONS.field("data_id"),
        CONVERSATIONS.field("kind"),
        CONVERSATIONS.field("segments"),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Conversation:
    """One conversation as the model sees it."""

    id: str
    kind: str
    expanded: Expanded


def shards_of(folder: Folder) -> list[str]:
    """Names of the Parquet files of a folder. Raise `UserError` for none."""
    names = [name for name in folder.list() if name.endswith(".parquet")]
    if not names:
        raise UserError(f"There are no conversations at {folder}: make them first (`mmsearch dataset build`).")
    return names


def rows_of(
    folder: Folder, shard: str, images: ImageStore, image_token: int, max_length: int
) -> Iterator[dict[str, Any]]:
    """Every row in COLUMNS; its pictures go to `images`. What cannot be used has its `problem` and no segments."""
    number = 0
    try:
        with folder.open(shard) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    yield _checked(row, f"{shard} row {number}", images, image_token, max_length)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield _unusable(f"{shard}: unreadable from row {number} on: {reason}")


def conversation_of(row: Mapping[str, Any], image_token: int) -> Conversation:
    """Raise `BadConversation`."""
    segments = segments_of(row)
    try:
        expanded = expand(segments, image_token)
    except ExpansionError as error:
        raise BadConversation(str(error)) from error
    return Conversation(str(row["data_id"]), row.get("kind") or "", expanded)


def _checked(
    row: Mapping[str, Any], where: str, images: ImageStore, image_token: int, max_length: int
) -> dict[str, Any]:
    try:
        if not row.get("data_id"):
            raise BadConversation("it has no data_id")
        conversation = conversation_of(row, image_token)
        if len(conversation.expanded) > max_length:
            raise BadConversation(f"{len(conversation.expanded)} tokens are more than max_length={max_length}")
        for picture in row.get("images") or ():
            if picture and picture.get("bytes") is not None:
                images.put(picture["bytes"])
        for ref in conversation.expanded.images:
            images.get(ref)
    except (BadConversation, ImageMissing, ImageRefused) as problem:
        return _unusable(f"{where}: {problem}")
    return {"data_id": row["data_id"], "kind": row.get("kind"), "segments": row["segments"], "problem": ""}


def _unusable(problem: str) -> dict[str, Any]:
    return {"data_id": None, "kind": None, "segments": None, "problem": problem}
