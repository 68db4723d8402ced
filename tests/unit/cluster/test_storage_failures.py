"""What storage refuses: the sentence, whose turn it is, and a disk that is really full."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.blobs import BlobMissing, BlobStore
from cluster.drives import S3Failed, S3Forbidden
from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from cluster.storage_failures import TRIES, Patience, reason_of, storage_failed, storage_told
from cluster.telemetry import FILE, Metrics, read
from cluster.trackers import Tracking
from tests.full_disk import files_of_at_most


def of(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Wrapped(OSError):
    """As Ray brings an error from another process: the number is in its cause alone."""

    def __init__(self, cause: OSError) -> None:
        super().__init__("ray::PolicyLearner.save() (pid=1)\n  a traceback")
        self.cause = cause


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_a_person_must_mend_ends_a_run_for_good(number):
    for error in (of(number), Wrapped(of(number))):
        told = storage_failed("the checkpoint could not be written", error)
        assert isinstance(told, UserError)
        assert str(told).startswith(f"the checkpoint could not be written: {os.strerror(number)}. ")


@pytest.mark.parametrize("error", [of(errno.EIO), S3Failed("S3 failed: no route."), OSError("who knows")])
def test_what_may_pass_by_itself_lets_the_run_be_started_again(error):
    told = storage_failed("x", error)
    assert isinstance(told, RunBroken)
    assert not isinstance(told, OSError)


def test_credentials_are_for_a_person():
    assert isinstance(storage_failed("x", S3Forbidden("S3 refuses access")), UserError)


def test_a_reason_is_one_line_without_a_full_stop():
    assert reason_of(OSError("a\n  b.")) == "a b"
    assert reason_of(S3Failed("S3 failed: gone.")) == "S3 failed: gone"
    assert reason_of(OSError()) == "OSError"


@pytest.mark.parametrize("error", [of(errno.ENOSPC), Wrapped(of(errno.ENOSPC))])
def test_a_refusal_anywhere_in_a_run_becomes_a_sentence(error):
    with pytest.raises(UserError, match=r"^it ended: No space left on device\."), storage_told("it ended"):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no such file"), ValueError("x"), OSError("x")])
def test_what_is_no_refusal_keeps_its_traceback(error):
    with pytest.raises(type(error)) as found, storage_told("it ended"):
        raise error
    assert found.value is error


def test_patience_ends_after_failures_in_a_row_alone():
    said: list[str] = []
    patience = Patience(said.append)
    for _ in range(3):
        for _ in range(TRIES - 1):
            patience.failed("x could not be written", of(errno.ENOSPC), "later again")
        patience.worked()
    assert said[0] == f"x could not be written: No space left on device; later again (1 of {TRIES})"
    for _ in range(TRIES - 1):
        patience.failed("x", of(errno.ENOSPC), "later again")
    with pytest.raises(UserError, match=f"^x, {TRIES} times in a row: No space left on device"):
        patience.failed("x", of(errno.ENOSPC), "later again")


# --- a disk that is full: the kernel refuses after so many bytes of a file --------------------------------------------

room = st.integers(0, 999)
few = settings(max_examples=20, deadline=None)


@few
@given(room, st.booleans())
def test_a_file_that_the_disk_refuses_leaves_the_old_one_and_nothing_else(tmp_path_factory, n_bytes, copied):
    folder = Folder(tmp_path_factory.mktemp("full"))
    folder.write_bytes("a", b"old")
    (source := tmp_path_factory.mktemp("source") / "a").write_bytes(b"n" * 1000)
    with files_of_at_most(n_bytes), pytest.raises(OSError, match="File too large"):
        folder.upload(source, "a") if copied else folder.write_bytes("a", b"n" * 1000)
    assert os.listdir(folder.local_path) == ["a"]
    assert folder.read_bytes("a") == b"old"


@few
@given(room)
def test_a_download_that_the_disk_refuses_leaves_nothing(tmp_path_factory, n_bytes):
    folder, target = Folder(tmp_path_factory.mktemp("there")), tmp_path_factory.mktemp("here")
    folder.write_bytes("model/weights", b"n" * 1000)
    with files_of_at_most(n_bytes), pytest.raises(OSError, match="File too large"):
        folder.download(target, "model")
    assert os.listdir(target) == []


@few
@given(room)
def test_a_blob_that_the_disk_refuses_is_not_there_and_can_be_put_again(tmp_path_factory, n_bytes):
    store, data = BlobStore(tmp_path_factory.mktemp("blobs")), b"n" * 1000
    with files_of_at_most(n_bytes), pytest.raises(OSError, match="File too large"):
        store.put(data)
    assert Folder(store._cache.address).files() == []
    assert store.get(store.put(data)) == data


def test_a_blob_that_could_not_go_behind_goes_there_with_the_next_try(tmp_path, monkeypatch):
    behind = Folder(tmp_path / "behind")
    store = BlobStore(tmp_path / "cache", behind)
    with monkeypatch.context() as patch:
        patch.setattr(behind, "write_bytes", lambda *_: (_ for _ in ()).throw(of(errno.EIO)))
        with pytest.raises(OSError, match="Input/output"):
            store.put(b"picture")
    name = store.put(b"picture")
    assert BlobStore(tmp_path / "other", behind).get(name) == b"picture"
    with pytest.raises(BlobMissing):
        BlobStore(tmp_path / "cache").get("0" * 64)


@few
@given(st.integers(0, 3000))
def test_metrics_are_whole_lines_whenever_the_disk_is_full(tmp_path_factory, n_bytes):
    folder = Folder(tmp_path_factory.mktemp("metrics"))
    metrics = Metrics(folder, tracking=Tracking(trackers=()), clock=lambda: 0.0)
    written: list[int] = []
    with files_of_at_most(n_bytes):
        for step in range(12):
            try:
                metrics.log(step, {"x": "y" * 150})
                written.append(step)
            except OSError:
                break
    assert [line["step"] for line in read(folder)] == written
    metrics.log(99, {})
    metrics.close()
    assert [line["step"] for line in read(folder)] == [*written, 99]
    assert all(json.loads(line) for line in folder.read_text(FILE).splitlines())
