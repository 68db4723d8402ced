"""Content-addressed bytes: a blob's name is the sha256 of what it holds.

On a node's disk, and behind that, where one is given, in the run's storage; so that bytes written on one
machine are read on another. Always true: what `get` returns hashes to its name, writing the same bytes twice
is one file, and a writer that dies leaves nothing under a name.

Without a storage behind it the disk is where blobs are kept. With one it is a cache, which all runs of a node share:
what was not used for the longest time goes when it grows beyond its bound, and whoever wants it fetches it again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from cluster.storage import Folder

CACHE_BYTES = 8 << 30  # of a node: some forty thousand pictures
LOOKS = 16  # a process looks whether the bound is kept after each 16th of it that it has written


class BlobMissing(KeyError):
    """Neither the cache nor the storage behind it has the blob."""


class BlobCorrupt(Exception):
    """The bytes found under a name do not hash to it."""


class BlobStore:
    """`cache` is a local folder; `behind`, if given, any Folder that all machines can reach, and then `cache_bytes` is
    about how much of it lies here. Can be pickled."""

    def __init__(
        self, cache: str | os.PathLike[str], behind: Folder | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._root, self._behind, self._bytes = Folder(cache), behind, cache_bytes
        # what is cached for one storage says nothing about what another has
        self._cache = self._root / _digest(behind.address.encode())[:16] if behind else self._root
        self._unseen = cache_bytes  # bytes written since the cache was looked at: others may have filled it before

    def put(self, data: bytes) -> str:
        """Keeps the bytes and returns their sha256, in hex."""
        sha256 = _digest(data)
        name = _name(sha256)
        if not self._used(name):
            # first where all can read it: were it cached alone, no second try would ever bring it there
            if self._behind is not None and not self._behind.exists(name):
                self._behind.write_bytes(name, data)
            self._keep(name, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Raises BlobMissing, or BlobCorrupt when the storage behind holds other bytes under that name."""
        name = _name(sha256)
        with suppress(FileNotFoundError):
            data = self._cache.read_bytes(name)
            if _digest(data) == sha256:
                self._used(name)
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
        if _digest(data) != sha256:
            raise BlobCorrupt(f"{self._behind} holds other bytes under {sha256}")
        self._keep(name, data)
        return data

    def cached(self, data: bytes) -> bool:
        """Whether these bytes lie on this disk. Storage is not asked."""
        return self._used(_name(_digest(data)))

    def __contains__(self, sha256: str) -> bool:
        name = _name(sha256)
        return self._used(name) or (self._behind is not None and self._behind.exists(name))

    def _used(self, name: str) -> bool:
        """Whether it lies here; it is then the last that will go."""
        path = self._cache.local_path / name
        if self._behind is None:
            return path.is_file()
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _keep(self, name: str, data: bytes) -> None:
        self._cache.write_bytes(name, data)
        self._unseen += len(data)
        if self._behind is not None and self._unseen > self._bytes // LOOKS:
            self._unseen = 0
            _shrink(self._root.local_path, self._bytes)


def _shrink(cache: Path, most: int) -> None:
    """Delete what was not used for the longest time, until `most` bytes are left. Others may be at it, too."""
    found: list[tuple[int, int, Path]] = []
    for folder, _, names in os.walk(cache):
        for path in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
    over = sum(size for _, size, _ in found) - most
    for _, size, path in sorted(found):
        if over <= 0:
            return
        path.unlink(missing_ok=True)
        over -= size


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(sha256: str) -> str:
    """Two levels, so that no directory grows beyond what file systems like."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is no sha256 in hex")
    return f"{sha256[:2]}/{sha256}"
