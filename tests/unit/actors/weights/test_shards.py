"""Weights become safetensors in one pass, whatever their number and sizes, and in files that are used again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_bytes

from actors.weights import landing
from actors.weights.buckets import StorageTransport
from actors.weights.landing import Landing
from actors.weights.manifest import Maps, bucket_tensors, digest_of
from actors.weights.receiver import Receiver
from actors.weights.shards import ALONE, HEADER_ROOM, MappedFile, Shard, copy_digested, shards
from actors.weights.transport import FolderTransport, reading
from tests.full_disk import files_of_at_most


def begin(capacity: int) -> Shard:
    return Shard(np.full(capacity, 255, dtype=np.uint8))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.integers(1, 500), st.integers(1, 400))
def test_shards_hold_every_tensor_once_and_no_more_bytes_than_they_may(sizes, limit, name_length):
    sent = {
        f"{'n' * name_length}.{i}": np.random.default_rng(i).integers(0, 256, n, dtype=np.uint8)
        for i, n in enumerate(sizes)
    }
    got: dict[str, np.ndarray] = {}
    for shard in shards(((name, "U8", data.shape, data) for name, data in sent.items()), limit, begin):
        whole = shard.finish()
        inside = load_bytes(whole.tobytes())
        assert sum(data.nbytes for data in inside.values()) <= limit or len([d for d in inside.values() if d.size]) == 1
        assert {entry.name: entry.digest for entry in shard.entries} == {n: digest_of(d) for n, d in inside.items()}
        assert [name for name, *_ in bucket_tensors(memoryview(whole), "it")] == [entry.name for entry in shard.entries]
        assert not got.keys() & inside.keys()
        got |= inside
    assert list(got) == list(sent) or got.keys() == sent.keys()
    assert all(np.array_equal(got[name], data) for name, data in sent.items())


def test_more_names_than_a_header_has_room_for_begin_another_shard():
    many = [(f"{'long' * 100}.{i}", "U8", (1,), np.zeros(1, dtype=np.uint8)) for i in range(600)]
    made = [(len(shard.entries), len(load_bytes(shard.finish().tobytes()))) for shard in shards(many, 1 << 20, begin)]
    assert len(made) > 1
    assert sum(n for n, _ in made) == 600
    assert all(n == read for n, read in made)


@pytest.mark.parametrize("size", [0, 1, ALONE - 1, ALONE, 3 * ALONE + 7])
def test_copying_digests_what_was_copied(size):
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    target = np.zeros(size, dtype=np.uint8)
    assert copy_digested(source, target) == digest_of(source)
    assert np.array_equal(source, target)
    assert copy_digested(torch.from_numpy(source), np.zeros(size, dtype=np.uint8)) == digest_of(source)


def tensors(value: float, n: int = 1000) -> dict[str, torch.Tensor]:
    return {"a": torch.full((n,), value), "b": torch.full((3,), value)}


def file_of(transport: FolderTransport, version: int) -> int:
    return os.stat(transport.folder(version) / "model.safetensors").st_ino


def test_files_of_a_forgotten_version_are_written_over_unless_somebody_reads_it(tmp_path):
    transport = FolderTransport(tmp_path / "sent")
    inodes = []
    for version in range(5):
        transport.send(version, tensors(float(version)).items())
        inodes.append(file_of(transport, version))
    assert inodes[2:] == [inodes[0], inodes[1], inodes[0]]
    with reading(transport.folder(3)):
        transport.send(5, tensors(5.0).items())
        transport.send(6, tensors(6.0).items())
        assert transport.versions() == [3, 5, 6]
        assert file_of(transport, 3) == inodes[1]
    transport.send(7, tensors(7.0).items())
    assert transport.versions() == [6, 7]
    transport.close()


def test_a_file_is_as_long_as_its_version_whether_the_last_one_was_longer_or_shorter(tmp_path):
    transport = FolderTransport(tmp_path / "sent", keep=1)
    receiver = Receiver(tmp_path)
    for version, n in enumerate((1000, 10, 5000, 1)):
        ticket = transport.send(version, tensors(float(version), n).items())
        with receiver.opened(ticket) as folder:
            assert (folder / "model.safetensors").stat().st_size == HEADER_ROOM + 4 * (n + 3)
    transport.close()


def test_a_file_that_somebody_shortened_is_not_written_over(tmp_path):
    transport = FolderTransport(tmp_path / "sent", keep=1)
    transport.send(0, tensors(1.0, 100_000).items())
    os.truncate(transport.folder(0) / "model.safetensors", 10)
    ticket = transport.send(1, tensors(2.0, 100_000).items())
    assert torch.equal(dict(transport.receive(ticket))["a"], tensors(2.0, 100_000)["a"])
    transport.close()


def test_a_full_disk_is_an_error_and_not_a_signal(tmp_path):
    file = MappedFile(tmp_path / "file", 1 << 20)
    file.reserve(1000)
    with files_of_at_most(200 << 10), pytest.raises(OSError, match="too large"):
        file.reserve(300 << 10)
    file.memory[:1000] = 1
    file.close()


def test_a_version_that_finds_no_room_leaves_the_last_one_and_the_next_one_is_sent(tmp_path):
    transport = FolderTransport(tmp_path / "sent", shard_bytes=60 << 10)
    before = transport.send(0, tensors(1.0).items())
    with files_of_at_most(150 << 10), pytest.raises(OSError, match="too large"):
        transport.send(1, tensors(2.0, 20_000).items())
    assert transport.versions() == [0]
    assert torch.equal(dict(transport.receive(before))["a"], tensors(1.0)["a"])
    assert len(list((tmp_path / "sent").iterdir())) == 1
    transport.send(1, tensors(2.0, 20_000).items())
    assert transport.versions() == [0, 1]


def test_a_reader_keeps_files_mapped_while_they_exist_and_no_longer(tmp_path):
    maps = Maps()
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"one")
    assert bytes(maps.of(file)) == b"one"
    file.write_bytes(b"three")  # over the same pages, and longer
    assert bytes(maps.of(file)) == b"three"
    file.write_bytes(b"2")
    assert bytes(maps.of(file)) == b"2"
    other.write_bytes(b"other")
    assert bytes(maps.of(other)) == b"other"
    assert len(maps._open) == 2
    file.unlink()
    assert bytes(maps.of(other)) == b"other"
    assert len(maps._open) == 1


def inside(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


@pytest.mark.parametrize("then", ["sends", "closes"])
def test_what_a_killed_sender_left_is_deleted_by_the_next_one(tmp_path, then):
    sent, left = FolderTransport(tmp_path / "sent"), tmp_path / "left"
    sent.send(6, tensors(6.0).items())

    def watched() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(1000)
        shutil.copytree(sent.root, left)  # what a kill at this moment leaves

    sent.send(7, watched())
    assert len(inside(left)) == 2
    resumed = FolderTransport(left)
    if then == "sends":
        resumed.send(7, tensors(7.0).items())
        assert inside(left) == ["v000006", "v000007"]
    resumed.close()
    assert inside(tmp_path) == ["sent"]


def killed_landing(base: Path, monkeypatch: pytest.MonkeyPatch) -> Landing:
    killed = Landing(base)
    os.close(killed._alive)  # as the kernel does
    hours_later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: hours_later)
    return killed


def test_what_a_killed_process_fetched_is_deleted_by_the_next_one(tmp_path, monkeypatch):
    alive, _ = Landing(tmp_path), killed_landing(tmp_path, monkeypatch)
    another = Landing(tmp_path)
    assert inside(tmp_path) == sorted([alive.root.name, another.root.name])
    alive.close()
    another.close()
    assert inside(tmp_path) == []


def test_so_it_is_by_a_learner_that_opens_what_it_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(landing, "default_root", lambda run: tmp_path / "shm" / run)
    (tmp_path / "shm").mkdir()
    killed = killed_landing(tmp_path / "shm", monkeypatch)
    transport = StorageTransport(str(tmp_path / "sent"), 1 << 20)
    transport.send(0, tensors(1.0).items())
    with transport.opened(0) as folder:
        assert inside(tmp_path / "shm") == [folder.parent.name] != [killed.root.name]
        assert (folder.parent / "alive").is_file()  # and if this one is killed, the next one sees it
    assert inside(tmp_path / "shm") == []
