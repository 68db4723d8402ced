"""Questions in Parquet files: found, numbered, and read again from where it stopped."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.workflows.predict.asked import write
from workflows.predict import source
from workflows.predict.source import Unit


def questions(n, first=0):
    return [{"id": f"q{first + i}", "question": f"who is {first + i}?"} for i in range(n)]


def read_all(found, done=()):
    return [row for unit in found.units(set(done)) for table in source.read(unit) for row in table.to_pylist()]


def test_a_folders_rows_are_numbered_in_the_order_of_its_files_and_hidden_ones_are_left_out(tmp_path):
    write(tmp_path / "b.parquet", questions(5, 3), group=2)
    write(tmp_path / "a/x.parquet", questions(3))
    write(tmp_path / "_delta/y.parquet", questions(3))
    write(tmp_path / ".z.parquet", questions(3))
    found = source.find(str(tmp_path))
    assert (found.rows, [file.name for file in found.files], found.whole_folder) == (
        8,
        ["a/x.parquet", "b.parquet"],
        True,
    )
    rows = read_all(found)
    assert [row["row"] for row in rows] == list(range(8))
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(8)]


def test_one_file_is_a_source_and_its_folder_is_where_paths_begin(tmp_path):
    write(tmp_path / "b.parquet", questions(1))
    found = source.find(str(write(tmp_path / "a.parquet", questions(2))))
    assert (found.rows, found.folder, found.whole_folder) == (2, Folder(tmp_path), False)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 4), st.sets(st.integers(0, 30)))
def test_what_is_left_to_read_is_what_is_not_done(tmp_path_factory, sizes, group, done):
    root = tmp_path_factory.mktemp("questions")
    for i, size in enumerate(sizes):
        write(root / f"{i}.parquet", questions(size, sum(sizes[:i])), group=group)
    found = source.find(str(root))
    assert [row["row"] for row in read_all(found, done)] == [i for i in range(sum(sizes)) if i not in done]
    assert list(found.units(set(range(sum(sizes))))) == []
    for unit in found.units(done):
        assert Unit.from_json(unit.to_json()) == unit


def torn_text():
    """An array of texts whose second one is no UTF-8."""
    data = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    return pa.StringArray.from_buffers(3, *data.buffers()[1:])


def test_columns_that_are_not_asked_are_not_read(tmp_path):
    pq.write_table(pa.table({"question": ["who?"] * 3, "other": torn_text()}), tmp_path / "a.parquet")
    rows = read_all(source.find(str(tmp_path / "a.parquet")))
    assert [row["problem"] for row in rows] == ["", "", ""]


def test_ids_must_be_there_and_differ(tmp_path):
    twice = write(tmp_path / "a.parquet", [*questions(3), *questions(1, 1)])
    with pytest.raises(UserError, match="Rows 1 and 3 have the same id, 'q1': give every row its own"):
        source.find(str(twice)).check_ids()
    none = write(tmp_path / "b.parquet", [{"id": "x", "question": "?"}, {"id": None, "question": "?"}])
    with pytest.raises(UserError, match="Row 1 has no id"):
        source.find(str(none)).check_ids()
    source.find(str(write(tmp_path / "c.parquet", [{"question": "?"}] * 2))).check_ids()


def test_ids_of_two_files_must_differ_too(tmp_path):
    write(tmp_path / "a.parquet", questions(2))
    write(tmp_path / "b.parquet", questions(2, 1))
    with pytest.raises(UserError, match="Rows 1 and 2 have the same id"):
        source.find(str(tmp_path)).check_ids()


def test_what_is_no_source_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There is nothing at"):
        source.find(str(tmp_path / "nowhere"))
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"text\.parquet cannot be read: .*magic bytes"):
        source.find(str(tmp_path / "text.parquet"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").write_text("x")
    with pytest.raises(UserError, match="no Parquet files in"):
        source.find(str(tmp_path / "empty"))
    write(tmp_path / "none/a.parquet", [], schema=pa.schema([("question", pa.string())]))
    with pytest.raises(UserError, match="There are no rows at"):
        source.find(str(tmp_path / "none"))


def test_files_that_ask_in_different_columns_are_refused(tmp_path):
    write(tmp_path / "a.parquet", [{"question": "?"}])
    write(tmp_path / "b.parquet", [{"prompt": "?"}])
    with pytest.raises(UserError, match="name their questions or their ids differently"):
        source.find(str(tmp_path))


def test_a_row_whose_text_does_not_decode_is_a_problem_of_its_own(tmp_path):
    pq.write_table(pa.table({"question": torn_text()}), tmp_path / "a.parquet")
    rows = read_all(source.find(str(tmp_path / "a.parquet")))
    assert [row["problem"] for row in rows] == ["", "a text of this row is not UTF-8", ""]


def test_the_fingerprint_follows_the_rows(tmp_path):
    path = write(tmp_path / "a.parquet", questions(2))
    before = source.find(str(path)).fingerprint
    assert source.find(str(path)).fingerprint == before
    write(path, questions(2, 5))
    assert source.find(str(path)).fingerprint != before


def test_what_lies_in_nothing_is_refused():
    assert source.parent_of(Folder("s3://bucket/a/b.parquet?scheme=http")).address == "s3://bucket/a?scheme=http"
    for address in ("s3://bucket", "/"):
        with pytest.raises(UserError, match="lies in no folder"):
            source.parent_of(Folder(address))
