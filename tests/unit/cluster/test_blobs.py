"""Content-addressed bytes on one machine."""

from __future__ import annotations

import hashlib
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.blobs import BlobMissing, BlobStore
from cluster.storage import Folder


def test_a_store_makes_no_folder_before_it_has_something_to_keep(tmp_path):
    store = BlobStore(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
    assert store.get(store.put(b"picture")) == b"picture"


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_every_blob_is_kept_once_under_its_hash(tmp_path_factory, blobs):
    folder = tmp_path_factory.mktemp("blobs")
    store = BlobStore(folder)
    names = [store.put(data) for data in blobs]
    assert names == [hashlib.sha256(data).hexdigest() for data in blobs]
    assert [store.get(name) for name in names] == blobs
    assert len(Folder(folder).files()) == len(set(blobs))


def test_a_missing_blob_says_so(tmp_path):
    store = BlobStore(tmp_path / "cache", Folder(tmp_path / "behind"))
    name = hashlib.sha256(b"").hexdigest()
    assert name not in store
    with pytest.raises(BlobMissing):
        store.get(name)


def test_a_damaged_cache_is_mended_from_behind(tmp_path):
    store = BlobStore(tmp_path / "cache", Folder(tmp_path / "behind"))
    name = store.put(b"picture")
    (cached,) = (tmp_path / "cache").rglob(name)
    cached.write_bytes(b"rot")
    assert store.get(name) == b"picture"
    assert cached.read_bytes() == b"picture"


def test_two_runs_with_one_cache_have_every_blob_in_their_own_storage(tmp_path):
    behind = [Folder(tmp_path / "one"), Folder(tmp_path / "two")]
    for storage in behind:
        name = BlobStore(tmp_path / "cache", storage).put(b"picture")
        assert BlobStore(tmp_path / f"node of {storage.name}", storage).get(name) == b"picture"


def size_of(folder):
    return sum(Folder(folder).sizes().values())


def test_a_cache_keeps_to_its_bound_and_the_storage_behind_it_keeps_everything(tmp_path):
    stores = [BlobStore(tmp_path / "cache", Folder(tmp_path / run), 1000) for run in ("one", "two")]
    names = []
    for number in range(60):
        names.append(stores[number % 2].put(bytes([number]) * 40))
        assert size_of(tmp_path / "cache") <= 1000 + 2 * 1000 // 16 + 40
    assert size_of(tmp_path / "one") == size_of(tmp_path / "two") == 1200
    assert [stores[number % 2].get(name)[0] for number, name in enumerate(names)] == list(range(60))
    for run in range(10):  # processes that end before they have written much
        BlobStore(tmp_path / "cache", Folder(tmp_path / "three"), 1000).put(bytes([run]) * 41)
        assert size_of(tmp_path / "cache") <= 1000


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path):
    behind = Folder(tmp_path / "behind")
    store = BlobStore(tmp_path / "cache", behind, 400)
    names = [store.put(bytes([number]) * 100) for number in range(4)]
    for age, name in enumerate(reversed(names)):
        (cached,) = (tmp_path / "cache").rglob(name)
        os.utime(cached, (1000 - age, 1000 - age))
    store.get(names[0])
    store.put(b"one more" * 10)
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.name in names} == {*names} - {names[1]}


def test_without_a_storage_behind_it_nothing_is_ever_deleted(tmp_path):
    store = BlobStore(tmp_path, cache_bytes=100)
    names = [store.put(bytes([number]) * 100) for number in range(10)]
    assert all(name in store for name in names)


@pytest.mark.parametrize("name", ["", "abc", "../" + "0" * 61, "Z" * 64])
def test_only_a_hash_is_a_name(tmp_path, name):
    with pytest.raises(ValueError, match="no sha256"):
        BlobStore(tmp_path).get(name)


def test_a_store_travels_in_a_pickle(tmp_path):
    store = BlobStore(tmp_path / "cache", Folder(tmp_path / "behind"))
    name = store.put(b"picture")
    assert pickle.loads(pickle.dumps(store)).get(name) == b"picture"
