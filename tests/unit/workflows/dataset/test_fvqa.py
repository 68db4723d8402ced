"""FVQA's Parquet files as released are a source; what is broken in them is dropped, not the rest."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from tests.unit.workflows.dataset.made import MemoryImages, png
from workflows.dataset.fvqa import ParquetSource
from workflows.dataset.source import Candidate, Dropped, Part

TEST = Part("questions/test", "test", 10, 10, taught=False)


def released(id, **changed):
    """A row with the columns and values that lmms-lab/FVQA has (papers.md 3.1)."""
    return {
        "prompt": [{"content": "<image>Who designed this tower?", "role": "user"}],
        "images": [{"bytes": png()}],
        "reward_model": {
            "style": "rule", "ground_truth": "Spain", "candidate_answers": json.dumps(["Kingdom of Spain", "ESP"])
        },
        "data_source": "mmsearch_r1/fvqa_test",
        "image_urls": None,
        "data_id": id,
        **changed,
    }  # fmt: skip


def read_all(folder, rows, per_group=2):
    pq.write_table(pa.Table.from_pylist(rows), folder / "fvqa_test.parquet", row_group_size=per_group)
    source, images = ParquetSource(None, test=str(folder)), MemoryImages()  # pyright: ignore[reportArgumentType]
    return [item for unit in source.units(TEST) for item in source.read(unit, images)]


def test_every_row_as_released_is_a_question_without_a_teacher(tmp_path):
    found = read_all(tmp_path, [released(f"fvqa_test_{i}") for i in range(5)])
    assert [item.question.id for item in found] == [f"fvqa_test_{i}" for i in range(5)]
    first = found[0]
    assert isinstance(first, Candidate)
    assert first.teacher is None
    assert first.question.text == "Who designed this tower?"
    assert first.question.answers == ("Spain", "Kingdom of Spain", "ESP")
    assert len(first.question.images) == 1


def test_a_broken_row_and_a_broken_image_are_dropped_with_their_place(tmp_path):
    rows = [released("a"), released("b", images=[{"bytes": png()[:40]}]), released("c", data_id="  "), released("d")]
    found = read_all(tmp_path, rows)
    causes = [item.cause if isinstance(item, Dropped) else "" for item in found]
    assert causes == ["", "bad_image", "bad_row", ""]
    assert found[1].where == "fvqa_test.parquet group 0 row 1"


def test_a_truncated_file_is_dropped_and_the_others_are_read(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    found = read_all(tmp_path, [released("a")])
    assert isinstance(found[0], Dropped)
    assert (found[0].where, found[0].cause) == ("broken.parquet", "unreadable_file")
    assert isinstance(found[1], Candidate)


def test_damage_inside_a_file_costs_its_group_of_rows_alone(tmp_path):
    rows = [released(str(i), images=[{"bytes": png(i, side=64)}]) for i in range(6)]
    path = tmp_path / "fvqa_test.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, compression="zstd")
    group = pq.ParquetFile(path).metadata.row_group(1)
    offset = min(group.column(i).data_page_offset for i in range(group.num_columns))
    data = bytearray(path.read_bytes())
    data[offset : offset + 4000] = b"\xff" * 4000
    path.write_bytes(bytes(data))
    source, images = ParquetSource(None, test=str(tmp_path)), MemoryImages()  # pyright: ignore[reportArgumentType]
    found = [item for unit in source.units(TEST) for item in source.read(unit, images)]
    assert [item.question.id for item in found if isinstance(item, Candidate)] == ["0", "1", "4", "5"]
    assert [item.cause for item in found if isinstance(item, Dropped)] == ["unreadable_rows"]


def test_a_folder_without_files_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no Parquet files"):
        ParquetSource(None, test=str(tmp_path)).units(TEST)  # pyright: ignore[reportArgumentType]


def test_a_split_that_is_not_given_and_a_taught_part_have_nothing():
    source = ParquetSource(None)  # pyright: ignore[reportArgumentType]
    assert source.units(TEST) == []
    assert ParquetSource(None, train="/nowhere").units(Part("sft", "train", 1, 1, taught=True)) == []  # pyright: ignore[reportArgumentType]
