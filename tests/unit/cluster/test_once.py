"""A folder is whole or not there, whoever makes it."""

import pytest

from cluster.once import made_once


def wrote(text):
    return lambda part: (part / "file").write_text(text)


def test_it_is_made_once_and_found_again(tmp_path):
    target = tmp_path / "deep" / "folder"
    assert made_once(target, wrote("first")) == made_once(target, wrote("second")) == target
    assert (target / "file").read_text() == "first"


def test_what_fails_on_the_way_leaves_nothing(tmp_path):
    def fails(part):
        (part / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path / "folder", fails)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_process_that_was_faster_stays(tmp_path):
    target = tmp_path / "folder"

    def slow(part):
        made_once(target, wrote("faster"))
        wrote("slower")(part)

    made_once(target, slow)
    assert (target / "file").read_text() == "faster"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
