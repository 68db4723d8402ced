"""Content-addressed bytes: a blob's name is the sha256 of what it holds.

On a node's disk, and behind that, where one is given, in the run's storage; so that bytes written on one
machine are read on another. Always true: what `get` returns hashes to its name, writing the same bytes twice
is one file, and a writer that dies leaves nothing under a name.
"""

from __future__ import annotations

import hashlib
import os

from cluster.storage import Folder


class BlobMissing(KeyError):
    """Neither the cache nor the storage behind it has the blob."""


class BlobCorrupt(Exception):
    """The bytes found under a name do not hash to it."""


class BlobStore:
    """`cache` is a local folder; `behind`, if given, any Folder that all machines can reach. Can be
    pickled."""

    def __init__(self, cache: str | os.PathLike[str], behind: Folder | None = None) -> None:
        self._cache = Folder(cache)
        self._behind = behind

    def put(self, data: bytes) -> str:
        """Keeps the bytes and returns their sha256, in hex."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = _name(sha256)
        if not self._cached(name):
            # first where all can read it: were it cached alone, no second try would ever bring it there
            if self._behind is not None and not self._behind.exists(name):
                self._behind.write_bytes(name, data)
            self._cache.write_bytes(name, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Raises BlobMissing, or BlobCorrupt when the storage behind holds other bytes under that name."""
        name = _name(sha256)
        if self._cached(name):
            data = self._cache.read_bytes(name)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            self._cache.delete(name)  # a damaged disk; the storage behind may still have it
        return self._fetch(name, sha256)

    def _fetch(self, name: str, sha256: str) -> bytes:
        if self._behind is None:
            raise BlobMissing(sha256)
        try:
            data = self._behind.read_bytes(name)
        except FileNotFoundError as error:
            raise BlobMissing(sha256) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BlobCorrupt(f"{self._behind} holds other bytes under {sha256}")
        self._cache.write_bytes(name, data)
        return data

    def __contains__(self, sha256: str) -> bool:
        name = _name(sha256)
        return self._cached(name) or (self._behind is not None and self._behind.exists(name))

    def discard(self, sha256: str) -> None:
        """Frees the blob everywhere; one that is not there is fine."""
        name = _name(sha256)
        self._cache.delete(name)
        if self._behind is not None:
            self._behind.delete(name)

    def _cached(self, name: str) -> bool:
        return (self._cache.local_path / name).is_file()


def _name(sha256: str) -> str:
    """Two levels, so that no directory grows beyond what file systems like."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is no sha256 in hex")
    return f"{sha256[:2]}/{sha256}"
