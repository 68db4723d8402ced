"""A folder is whole or not there, whoever makes it."""

import errno
import fcntl
import multiprocessing
import os
import time

import pytest

from cluster.errors import UserError
from cluster.once import made_once


def wrote(text):
    return lambda part: (part / "file").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_is_made_once_and_found_again(tmp_path):
    target = tmp_path / "deep" / "folder"
    assert made_once(target, wrote("first")) == made_once(target, wrote("second")) == target
    assert (target / "file").read_text() == "first"
    assert names(tmp_path / "deep") == ["folder"]


def test_what_fails_on_the_way_leaves_nothing(tmp_path):
    def fails(part):
        (part / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path / "folder", fails)
    assert names(tmp_path) == []


def noted(target, who, all_here):
    """In a process of its own: make the folder once all are there, and leave a note beside it of having done so."""

    def make(part):
        (target.parent / f"made-by-{who}").touch()
        time.sleep(0.2)  # long enough for the others to want it, too
        wrote(str(who))(part)

    all_here.wait(60)
    made_once(target, make)
    assert (target / "file").read_text()


def test_of_processes_that_want_it_at_once_one_makes_it(tmp_path):
    server, target = multiprocessing.get_context("forkserver"), tmp_path / "folder"
    all_here = server.Barrier(3)
    others = [server.Process(target=noted, args=(target, who, all_here)) for who in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0, 0]
    made = [name for name in names(tmp_path) if name != "folder"]
    assert made == [f"made-by-{(target / 'file').read_text()}"]


def test_what_a_killed_process_left_half_made_is_deleted_and_nothing_else(tmp_path):
    (tmp_path / ".folder.part-killed").mkdir()
    (tmp_path / ".folder.part-killed" / "half").touch()
    (tmp_path / ".folder.lock").touch()
    (tmp_path / ".other.part-alive").mkdir()
    made_once(tmp_path / "folder", wrote("anew"))
    assert names(tmp_path) == [".other.part-alive", "folder"]


def test_waiting_for_another_process_has_an_end(tmp_path):
    with (tmp_path / ".folder.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"has been making .*folder for more than 0 s"):
            made_once(tmp_path / "folder", wrote("mine"), wait_s=0.1)
        assert names(tmp_path) == [".folder.lock"]
    made_once(tmp_path / "folder", wrote("mine"))
    assert names(tmp_path) == ["folder"]


def test_a_lock_that_its_owner_has_deleted_is_none(tmp_path, monkeypatch):
    """Between opening and locking it, the owner ends and another process begins."""
    flock, lock, others = fcntl.flock, tmp_path / ".folder.lock", []

    def just_deleted(file, how):
        if not others:
            lock.unlink()
            others.append(lock.open("w"))
            flock(others[0], fcntl.LOCK_EX)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", just_deleted)
    with pytest.raises(UserError, match="has been making"):
        made_once(tmp_path / "folder", wrote("mine"), wait_s=0.1)
    others[0].close()


def test_without_locks_the_folder_of_a_process_that_was_faster_stays(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    target = tmp_path / "folder"

    def slow(part):
        made_once(target, wrote("faster"))
        wrote("slower")(part)

    made_once(target, slow)
    assert (target / "file").read_text() == "faster"
    assert names(tmp_path) == ["folder"]
