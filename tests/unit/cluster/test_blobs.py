"""Content-addressed bytes on one machine."""

from __future__ import annotations

import hashlib
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
    (tmp_path / "cache" / name[:2] / name).write_bytes(b"rot")
    assert store.get(name) == b"picture"
    assert (tmp_path / "cache" / name[:2] / name).read_bytes() == b"picture"


def test_a_discarded_blob_is_gone_everywhere(tmp_path):
    store = BlobStore(tmp_path / "cache", Folder(tmp_path / "behind"))
    name = store.put(b"picture")
    store.discard(name)
    store.discard(name)
    assert name not in store


@pytest.mark.parametrize("name", ["", "abc", "../" + "0" * 61, "Z" * 64])
def test_only_a_hash_is_a_name(tmp_path, name):
    with pytest.raises(ValueError, match="no sha256"):
        BlobStore(tmp_path).get(name)


def test_a_store_travels_in_a_pickle(tmp_path):
    store = BlobStore(tmp_path / "cache", Folder(tmp_path / "behind"))
    name = store.put(b"picture")
    assert pickle.loads(pickle.dumps(store)).get(name) == b"picture"
