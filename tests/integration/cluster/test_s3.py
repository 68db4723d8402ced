"""The same calls on S3 as on a disk, against a real server on loopback."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from cluster.blobs import BlobCorrupt, BlobStore
from cluster.errors import UserError
from cluster.storage import Folder
from cluster.telemetry import Metrics, read


@pytest.fixture
def folder(s3_bucket: str) -> Folder:
    return Folder(f"{s3_bucket}/runs/a")


def test_files_come_back_as_they_were_written(folder: Folder):
    folder.write_bytes("deep/er/b.bin", b"\x00\xff")
    folder.write_json("state.json", {"step": 3})
    assert folder.read_bytes("deep/er/b.bin") == b"\x00\xff"
    assert [folder.read_bytes("deep/er/b.bin", *part) for part in ((0, 1), (1, 9), (1,))] == [b"\x00", b"\xff", b"\xff"]
    assert (folder / "deep").read_bytes("er/b.bin") == b"\x00\xff"
    assert folder.read_json("state.json") == {"step": 3}
    assert folder.list() == ["deep", "state.json"]
    assert folder.files() == ["deep/er/b.bin", "state.json"]


def test_what_is_not_there_is_not_there(folder: Folder):
    assert not folder.exists("no")
    assert folder.list() == []
    folder.delete("no")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("no")
    with pytest.raises(FileNotFoundError):
        folder.download("/nowhere", "no")


def test_a_tree_goes_up_and_down_unchanged(folder: Folder, tmp_path: Path):
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "sub/weights.bin").write_bytes(bytes(range(256)) * 1000)
    folder.upload(source, "model")
    folder.upload(source / "config.json", "copy.json")
    target = folder.download(tmp_path / "back", "model")
    assert {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} == {
        "config.json",
        "sub/weights.bin",
    }
    assert (target / "sub/weights.bin").read_bytes() == (source / "sub/weights.bin").read_bytes()
    assert folder.read_text("copy.json") == "{}"
    folder.delete("model")
    assert folder.files() == ["copy.json"]


def test_a_pickled_folder_opens_its_own_connection(folder: Folder):
    folder.write_text("a", "b")
    assert pickle.loads(pickle.dumps(folder)).read_text("a") == "b"


def test_pyarrow_reads_and_writes_through_its_filesystem(folder: Folder):
    files, path = (folder / "shards").pyarrow_filesystem()
    pq.write_table(pa.table({"x": [1, 2]}), f"{path}/0.parquet", filesystem=files)
    assert pq.read_table(f"{path}/0.parquet", filesystem=files)["x"].to_pylist() == [1, 2]
    assert (folder / "shards").list() == ["0.parquet"]


def test_an_endpoint_in_the_address_needs_no_environment(folder: Folder, s3_server: str, monkeypatch):
    folder.write_text("a", "b")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    there = Folder(f"{folder.address}?endpoint_override={s3_server.removeprefix('http://')}&scheme=http")
    assert (there / "x").address.endswith("&scheme=http")
    assert there.read_text("a") == "b"


def test_a_bucket_that_does_not_exist_is_one_sentence(s3_server: str):
    with pytest.raises(UserError, match="cannot be written to"):
        Folder("s3://no-such-bucket-here/x").ensure_writable()


def test_a_query_that_s3_addresses_do_not_have_is_refused(folder: Folder):
    with pytest.raises(UserError, match="not colour"):
        Folder(f"{folder.address}?colour=red").list()


def test_missing_credentials_are_one_sentence(folder: Folder):
    # In a process of its own: this one has credentials, and its connection remembers them.
    program = (
        "from cluster.errors import UserError\n"
        "from cluster.storage import Folder\n"
        f"try: Folder({folder.address!r}).write_text('a', 'b')\n"
        "except UserError as error: print(error.message)"
    )
    bare = {k: v for k, v in os.environ.items() if k not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    bare |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=bare
    )
    assert done.stdout.startswith("There are no credentials for S3"), done.stderr


def test_an_upload_that_breaks_in_the_middle_leaves_the_old_file(folder: Folder, tmp_path: Path, monkeypatch):
    folder.write_text("model.bin", "old")
    large = tmp_path / "model.bin"
    with large.open("wb") as sparse:
        sparse.truncate(101 << 20)  # more than one part of 50 MiB can take
    sent = S3FileSystem._call_s3

    async def breaks(self, method, *args, **kwargs):
        if method == "upload_part" and kwargs["PartNumber"] == 2:
            raise OSError("the line is cut")
        return await sent(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", breaks)
    with pytest.raises(OSError, match="the line is cut"):
        folder.upload(large, "model.bin")
    assert folder.read_text("model.bin") == "old"


def test_a_fingerprint_sees_what_was_made_anew(folder: Folder):
    folder.write_text("a.safetensors", "one")
    before = folder.fingerprint(".safetensors")
    folder.write_text("b.json", "another kind")
    assert folder.fingerprint(".safetensors") == before
    folder.write_text("a.safetensors", "two")
    assert folder.fingerprint(".safetensors") != before


def test_a_blob_written_on_one_machine_is_read_on_another(folder: Folder, tmp_path: Path):
    name = BlobStore(tmp_path / "one", folder).put(b"picture")
    other = BlobStore(tmp_path / "two", folder)
    assert name in other
    assert other.get(name) == b"picture"
    folder.delete(f"{name[:2]}/{name}")
    assert other.get(name) == b"picture"


def test_a_blob_with_other_bytes_under_its_name_is_refused(folder: Folder, tmp_path: Path):
    name = BlobStore(tmp_path / "one", folder).put(b"picture")
    folder.write_bytes(f"{name[:2]}/{name}", b"forged")
    with pytest.raises(BlobCorrupt):
        BlobStore(tmp_path / "two", folder).get(name)


def test_metrics_reach_s3_at_every_flush_and_resume_there(folder: Folder):
    metrics = Metrics(folder)
    metrics.log(1, {"loss": 1.0})
    metrics.log(2, {"loss": 0.5})
    metrics.flush()
    assert [line["step"] for line in read(folder)] == [1, 2]
    metrics.close()
    with Metrics(folder, resume_at=1) as resumed:
        resumed.log(2, {"loss": 0.25})
    assert [(line["step"], line["loss"]) for line in read(folder)] == [(1, 1.0), (2, 0.25)]
