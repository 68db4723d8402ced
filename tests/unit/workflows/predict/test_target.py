"""The output: whole, its own, and never mixed with another's."""

import json

import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.workflows.predict.asked import write
from tests.unit.workflows.predict.test_parts import put
from workflows.predict import source
from workflows.predict.parts import Parts
from workflows.predict.target import Target

IDENTITY = {"weights": "a", "search": {"top_k": 2}}
OTHER = {"weights": "b", "search": {"top_k": 2}}


def finish(target, identity=IDENTITY, rows=range(5), rows_per_file=100):
    assert target.begin(identity, False) is True
    put(target.parts, "a", rows)
    target.write(Parts.in_folder(target.parts), identity, rows_per_file)


@pytest.mark.parametrize("name", ["out.parquet", "answers"])
def test_what_is_complete_is_not_made_again_and_leaves_no_parts(tmp_path, name):
    target = Target.at(str(tmp_path / name))
    finish(target)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert pq.read_table(tmp_path / name)["id"].to_pylist() == [f"q{i}" for i in range(5)]
    put(target.parts, "a", [1])  # as a kill between writing and cleaning leaves them
    target.parts.write_json("identity.json", IDENTITY)
    assert target.begin(IDENTITY, False) is False
    assert not target.parts.exists()


def test_a_folder_has_files_of_so_many_rows(tmp_path):
    finish(Target.at(str(tmp_path / "answers")), rows_per_file=2)
    files = sorted(path.name for path in (tmp_path / "answers").iterdir())
    assert files == ["_complete.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert json.loads((tmp_path / "answers/_complete.json").read_text()) == IDENTITY


@pytest.mark.parametrize("name", ["out.parquet", "answers"])
def test_other_settings_are_not_mixed_into_answers_that_are_there_unless_asked_to_begin_anew(tmp_path, name):
    target = Target.at(str(tmp_path / name))
    finish(target)
    with pytest.raises(UserError, match=r"has answers of other settings \(weights was 'a' and is 'b'\).*--again"):
        target.begin(OTHER, False)
    assert target.begin(OTHER, True) is True
    assert pq.read_table(tmp_path / name).num_rows == 5  # those of before, until the new ones are all there
    assert target.begin(OTHER, False) is True  # stopped, and begun again without the word
    put(target.parts, "b", [0])
    target.write(Parts.in_folder(target.parts), OTHER, 100)
    assert pq.read_table(tmp_path / name).num_rows == 1
    assert target.begin(OTHER, False) is False


def test_parts_of_other_settings_are_kept_until_a_person_decides(tmp_path):
    target = Target.at(str(tmp_path / "out.parquet"))
    target.begin(IDENTITY, False)
    put(target.parts, "a", [0])
    with pytest.raises(UserError, match=r"out\.parquet\.parts has answers of other settings"):
        target.begin(OTHER, False)
    assert target.begin(IDENTITY, False) is True
    assert len(Parts.in_folder(target.parts).rows) == 1
    assert target.begin(IDENTITY, True) is True
    assert len(Parts.in_folder(target.parts).rows) == 0


@pytest.mark.parametrize("again", [False, True])
def test_what_others_left_at_the_output_is_never_overwritten(tmp_path, again):
    write(tmp_path / "foreign.parquet", [{"a": 1}])
    (tmp_path / "text.parquet").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine.txt").write_text("x")
    for name in ("foreign.parquet", "text.parquet", "folder"):
        with pytest.raises(UserError, match="is there already, and not from `mmsearch predict`"):
            Target.at(str(tmp_path / name)).begin(IDENTITY, again)
    assert (tmp_path / "folder/mine.txt").exists()


def test_answers_do_not_go_among_the_questions(tmp_path):
    path = write(tmp_path / "in/q.parquet", [{"question": "?"}])
    one, folder = source.find(str(path)), source.find(str(tmp_path / "in"))
    for found, out in ((one, "in/q.parquet"), (folder, "in/answers.parquet"), (folder, "in/sub/answers")):
        with pytest.raises(UserError, match="is where the questions are"):
            Target.at(str(tmp_path / out)).check(found)
    Target.at(str(tmp_path / "in/answers.parquet")).check(one)
    Target.at(str(tmp_path / "inside.parquet")).check(folder)


def test_an_empty_folder_may_be_the_output(tmp_path):
    (tmp_path / "answers").mkdir()
    target = Target.at(str(tmp_path / "answers"))
    assert target.begin(IDENTITY, False) is True
    assert Folder(tmp_path / "answers").list() == []


def test_a_folder_that_was_being_written_anew_is_not_taken_for_complete(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    target = Target.at(str(tmp_path / "answers"))
    finish(target)
    target.begin(OTHER, True)
    put(target.parts, "b", [0])
    with monkeypatch.context() as patched:
        patched.setattr("workflows.predict.target.write_file", full)
        with pytest.raises(OSError, match="No space"):
            target.write(Parts.in_folder(target.parts), OTHER, 100)
    with pytest.raises(UserError, match="other settings"):
        target.begin(IDENTITY, False)
    assert target.begin(OTHER, False) is True
    target.write(Parts.in_folder(target.parts), OTHER, 100)
    assert target.begin(OTHER, False) is False
