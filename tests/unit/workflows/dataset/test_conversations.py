"""Conversations back from shards: what cannot be used is listed, the rest is trained on."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.workflows.dataset.made import IMAGE_TOKEN, MemoryImages, png, question, trajectory
from workflows.dataset.conversations import conversation_of, rows_of, shards_of
from workflows.dataset.schema import CONVERSATIONS, conversation_row


def shard(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows, schema=CONVERSATIONS), folder / "part-0.parquet")
    return Folder(folder)


def conversation(id, data=None):
    data = data or png()
    ref = MemoryImages().put(data)
    return conversation_row(question([ref], id=id), [data], trajectory(ref))


def test_a_broken_image_a_missing_one_and_a_torn_conversation_are_listed_and_left_out(tmp_path):
    rows = [conversation("good"), conversation("torn picture"), conversation("no picture"), conversation("torn")]
    rows[1]["images"] = [{"bytes": png()[:50]}]
    rows[2]["images"] = [{"bytes": None}]
    rows[2]["segments"][0]["images"][0]["sha256"] = "0" * 64
    rows[3]["segments"][0]["images"] = []  # a placeholder without its image
    found = list(rows_of(shard(tmp_path, rows), "part-0.parquet", MemoryImages(), IMAGE_TOKEN, 100))
    assert [row["data_id"] for row in found] == ["good", None, None, None]
    assert found[0]["problem"] == ""
    assert "not a whole image" in found[1]["problem"]
    assert all(row["problem"].startswith(f"part-0.parquet row {i}: ") for i, row in enumerate(found) if i)
    assert conversation_of(found[0], IMAGE_TOKEN).expanded.loss_mask.sum() == 5


def test_a_conversation_that_is_too_long_is_left_out(tmp_path):
    found = list(rows_of(shard(tmp_path, [conversation("a")]), "part-0.parquet", MemoryImages(), IMAGE_TOKEN, 5))
    assert "more than max_length=5" in found[0]["problem"]


def test_a_torn_shard_is_one_listed_problem(tmp_path):
    folder = shard(tmp_path, [conversation("a")])
    path = tmp_path / "part-0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    found = list(rows_of(folder, "part-0.parquet", MemoryImages(), IMAGE_TOKEN, 100))
    assert len(found) == 1
    assert "unreadable" in found[0]["problem"]


def test_no_shards_at_all_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="mmsearch dataset build"):
        shards_of(Folder(tmp_path))
