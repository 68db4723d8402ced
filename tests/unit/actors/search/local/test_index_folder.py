"""An index is there whole or not at all, and what is not an index is never replaced."""

import json
import os

import pytest

from actors.search.local import index_folder
from actors.search.local.index_folder import CACHE, MANIFEST, TEXT, open_index, read_manifest, staged
from cluster.drives import LocalDrive
from cluster.errors import UserError
from cluster.storage import Folder


def made(address, content=b"content", force=False, kind=TEXT):
    with staged(str(address), force) as staging:
        (staging.path / "deep").mkdir()
        (staging.path / "deep" / "file").write_bytes(content)
        return staging.finish(kind, 3, "abc", {"colour": "red"})


def test_an_index_appears_with_its_manifest_and_is_opened(tmp_path):
    written = made(tmp_path / "new" / "index")
    path, manifest = open_index(str(tmp_path / "new" / "index"), TEXT)
    assert manifest == written
    assert (manifest.count, manifest.digest, manifest.details) == (3, "abc", {"colour": "red"})
    assert manifest.files == {"deep/file": 7}
    assert (path / "deep" / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path / "new") == ["index"]


def test_what_fails_leaves_nothing(tmp_path):
    def fails():
        with staged(str(tmp_path / "index")) as staging:
            (staging.path / "file").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert os.listdir(tmp_path) == []


def test_what_fails_leaves_the_index_that_was_there(tmp_path):
    made(tmp_path / "index", b"old")

    def fails():
        with staged(str(tmp_path / "index"), force=True) as staging:
            staging.finish(TEXT, 1, "new", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (tmp_path / "index" / "deep" / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["index"]


def test_nothing_is_at_the_address_before_the_end(tmp_path):
    with staged(str(tmp_path / "index")) as staging:
        staging.finish(TEXT, 1, "x", {})
        assert not (tmp_path / "index").exists()
        assert staging.path.parent == tmp_path  # so that it is one renaming away
    assert (tmp_path / "index" / MANIFEST).is_file()


def test_an_index_is_replaced_when_asked_and_only_then(tmp_path):
    made(tmp_path / "index", b"old")
    with pytest.raises(UserError, match="--force"):
        made(tmp_path / "index", b"new")
    assert (tmp_path / "index" / "deep" / "file").read_bytes() == b"old"
    with (tmp_path / "index" / "deep" / "file").open("rb") as reader:
        made(tmp_path / "index", b"new", force=True)
        assert reader.read() == b"old"  # who has it open is not disturbed
    assert (tmp_path / "index" / "deep" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["index"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "index").mkdir()
    made(tmp_path / "index")
    assert read_manifest(Folder(tmp_path / "index")).count == 3


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_never_replaced(tmp_path, force):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other things"):
        made(tmp_path / "index", force=force)
    (tmp_path / "index" / MANIFEST).write_text('{"kind": "browser extension"}')
    with pytest.raises(UserError, match="not the manifest of an index"):
        made(tmp_path / "index", force=force)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        made(tmp_path / "file", force=force)
    assert (tmp_path / "index" / "thesis.tex").read_text() == "years of work"


def test_things_that_came_while_it_was_built_are_not_replaced(tmp_path):
    def meets_others():
        with staged(str(tmp_path / "index")) as staging:
            staging.finish(TEXT, 1, "x", {})
            (tmp_path / "index").mkdir()
            (tmp_path / "index" / "notes").write_text("mine")

    with pytest.raises(UserError, match="other things"):
        meets_others()
    assert os.listdir(tmp_path) == ["index"]
    assert os.listdir(tmp_path / "index") == ["notes"]


def test_where_nothing_can_be_written_it_is_said_before_anything_is_built(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"), staged(str(tmp_path / "file" / "index")):
        raise AssertionError("never reached")


def test_no_index_another_kind_and_another_version_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no index at"):
        open_index(str(tmp_path / "none"), TEXT)
    made(tmp_path / "index", kind=CACHE)
    with pytest.raises(UserError, match="image-search cache, and an index of passages is needed"):
        open_index(str(tmp_path / "index"), TEXT)
    manifest = tmp_path / "index" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        open_index(str(tmp_path / "index"), CACHE)
    made(tmp_path / "index", force=True)  # an old one can be replaced all the same


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 1, "kind": "text", "odd": 1}'])
def test_what_is_no_manifest_is_said(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError):
        open_index(str(tmp_path), TEXT)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_file_that_is_cut_or_gone_makes_an_index_damaged(tmp_path, damage):
    made(tmp_path / "index")
    file = tmp_path / "index" / "deep" / "file"
    file.write_bytes(b"con") if damage == "cut" else file.unlink()
    with pytest.raises(UserError, match="damaged: deep/file"):
        open_index(str(tmp_path / "index"), TEXT)


def test_an_index_elsewhere_is_copied_once(tmp_path, monkeypatch):
    made(tmp_path / "index")
    monkeypatch.setattr(Folder, "is_local", property(lambda self: self.name != "index"))
    monkeypatch.setattr(Folder, "_drive", LocalDrive())
    downloads, download = [], Folder.download
    monkeypatch.setattr(Folder, "download", lambda *args: downloads.append(1) or download(*args))
    copied, _ = open_index(str(tmp_path / "index"), TEXT, str(tmp_path / "copies"))
    assert copied.parent == tmp_path / "copies"
    assert (copied / "deep" / "file").read_bytes() == b"content"
    (copied / "deep" / "file").write_bytes(b"CONTENT")
    again, _ = open_index(str(tmp_path / "index"), TEXT, str(tmp_path / "copies"))
    assert again == copied
    assert (again / "deep" / "file").read_bytes() == b"CONTENT"
    assert os.listdir(tmp_path / "copies") == [copied.name]
    assert len(downloads) == 1


def test_an_index_is_readable_for_those_who_may_read_new_folders(tmp_path):
    before = os.umask(0o022)
    try:
        made(tmp_path / "index")
    finally:
        os.umask(before)
    assert (tmp_path / "index").stat().st_mode & 0o777 == 0o755
    assert index_folder.MANIFEST in os.listdir(tmp_path / "index")
