"""Folder on a local disk: addresses, whole files, trees."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.storage import Folder, check_inside


def test_a_relative_path_becomes_an_absolute_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder("runs/a").address == str(tmp_path / "runs/a")
    assert Folder(tmp_path / "runs") / "a" == Folder("runs/a")


@pytest.mark.parametrize(
    ("address", "path"),
    [("s3://bucket/a/b/", "bucket/a/b"), ("s3://bucket", "bucket"), ("s3://bucket/a?scheme=http", "bucket/a")],
)
def test_an_s3_address_is_taken_apart_without_a_connection(address, path):
    folder = Folder(address)
    assert (folder.is_local, folder.path) == (False, path)
    assert Folder(folder.address) == folder


@pytest.mark.parametrize("address", ["gs://bucket/a", "http://host/a", "s3://"])
def test_other_addresses_are_refused_in_words(address):
    with pytest.raises(UserError, match="s3://"):
        Folder(address)


def test_a_remote_folder_has_no_local_path():
    with pytest.raises(UserError, match="not on this machine"):
        _ = Folder("s3://bucket/a").local_path


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_names_cannot_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="leads out"):
        Folder(tmp_path).write_bytes(name, b"")


@given(st.binary(max_size=4096))
def test_bytes_come_back_as_they_were_written(tmp_path_factory, data):
    folder = Folder(tmp_path_factory.getbasetemp() / "bytes")
    folder.write_bytes("deep/er/file", data)
    assert folder.read_bytes("deep/er/file") == data


@pytest.mark.parametrize(("start", "end", "part"), [(0, None, b"0123"), (1, 3, b"12"), (2, None, b"23"), (3, 9, b"3")])
def test_a_part_of_a_file_can_be_read(tmp_path, start, end, part):
    folder = Folder(tmp_path)
    folder.write_bytes("a", b"0123")
    assert folder.read_bytes("a", start, end) == part


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.write_text("a", "old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        folder.write_text("a", "new")
    assert folder.read_text("a") == "old"
    assert folder.list() == ["a"]


def test_listing_deleting_and_asking(tmp_path):
    folder = Folder(tmp_path / "not-yet")
    assert folder.list() == []
    assert not folder.exists()
    folder.write_text("b/c", "1")
    folder.write_text("a", "2")
    assert (folder.list(), folder.files()) == (["a", "b"], ["a", "b/c"])
    folder.delete("b")
    folder.delete("b")
    assert folder.files() == ["a"]
    folder.delete()
    assert not folder.exists()


def test_trees_and_single_files_are_copied_both_ways(tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/x").write_bytes(b"x")
    folder = Folder(tmp_path / "store")
    folder.upload(source, "tree")
    folder.upload(source / "sub/x", "single")
    assert folder.files() == ["single", "tree/sub/x"]
    assert (folder.download(tmp_path / "back", "tree") / "sub/x").read_bytes() == b"x"
    assert folder.download(tmp_path / "one", "single").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError, match="no-such"):
        folder.upload(tmp_path / "no-such")


def test_a_folder_travels_in_a_pickle_after_it_was_used(tmp_path):
    folder = Folder(tmp_path)
    folder.write_text("a", "b")
    assert folder.exists("a")
    assert pickle.loads(pickle.dumps(folder)).read_text("a") == "b"


def test_a_file_on_a_disk_has_no_address_on_the_web(tmp_path):
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        Folder(tmp_path).signed_url("a.png", 60)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    Path(tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to") as caught:
        Folder(tmp_path / "file/below").ensure_writable()
    assert caught.value.message.endswith("it is a file, or lies below one.")
    assert "\n" not in caught.value.message
    Folder(tmp_path / "fine").ensure_writable()
    assert Folder(tmp_path / "fine").list() == []


@pytest.mark.parametrize("name", ["", "../escape", "/abs", "a/../../b", "s3://bucket/x"])
def test_a_folder_of_a_run_must_lie_within_it(name):
    with pytest.raises(ValueError, match="within the run's"):
        check_inside("folder", name)


def test_a_folder_within_a_run_may_be_deep():
    check_inside("folder", "costly/evaluate")
