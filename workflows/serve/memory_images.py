"""Pictures of requests, in memory alone: what people send is written nowhere.

Always true: a picture stays as long as a request holds it, and how many those are, the door bounds; what nobody holds
takes `max_bytes` at most, and is forgotten from the longest unused on. So what was put a moment ago is there a moment
later, however much is held. Threads may put, get and hold at once.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from actors.agent.seams import ImageMissing
from actors.agent.trajectory import ImageRef
from actors.model.images import MAX_BYTES, MAX_PIXELS, measure


class MemoryImages:
    """An `agent.seams.ImageStore` for one process."""

    def __init__(
        self, max_bytes: int = 256 << 20, *, max_image_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
    ) -> None:
        self._known: OrderedDict[str, tuple[ImageRef, bytes]] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._loose = 0  # bytes of those that nobody holds
        self._max_bytes, self._max_image_bytes, self._max_pixels = max_bytes, max_image_bytes, max_pixels
        self._lock = Lock()

    def put(self, data: bytes) -> ImageRef:
        """Raise `ImageRefused` for what is no picture, is broken, or is too large.

        One that is here already was whole when it came, and is not decoded again.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            if sha256 in self._known:
                self._known.move_to_end(sha256)
                return self._known[sha256][0]
        width, height = measure(data, self._max_image_bytes, self._max_pixels)  # outside the lock: it takes long
        return self.keep(ImageRef(sha256, width, height), data)

    def keep(self, ref: ImageRef, data: bytes) -> ImageRef:
        """A picture that a process of ours has measured."""
        with self._lock:
            if ref.sha256 not in self._known:
                self._known[ref.sha256] = (ref, data)
                self._loose += 0 if self._held[ref.sha256] else len(data)
            self._known.move_to_end(ref.sha256)
            self._forget()
        return ref

    def get(self, ref: ImageRef) -> bytes:
        """Raise `ImageMissing` for one that was forgotten, or never here."""
        with self._lock:
            try:
                self._known.move_to_end(ref.sha256)
                return self._known[ref.sha256][1]
            except KeyError:
                raise ImageMissing(f"image {ref.sha256[:12]} is not held") from None

    def has(self, ref: ImageRef) -> bool:
        """Whether `get` would find it."""
        with self._lock:
            return ref.sha256 in self._known

    @contextmanager
    def holding(self, refs: Iterable[ImageRef]) -> Iterator[Counter[str]]:
        """For the time of a request; what is added to the counter by `hold` meanwhile is held, too."""
        mine: Counter[str] = Counter()
        try:
            for ref in refs:
                self.hold(mine, ref)
            yield mine
        finally:
            with self._lock:
                for sha256, times in mine.items():
                    self._let_go(sha256, times)
                mine.clear()
                self._forget()

    def hold(self, mine: Counter[str], ref: ImageRef) -> None:
        """One more picture of a request."""
        with self._lock:
            if not self._held[ref.sha256]:
                self._loose -= self._size_of(ref.sha256)
            mine[ref.sha256] += 1
            self._held[ref.sha256] += 1

    def _let_go(self, sha256: str, times: int) -> None:
        self._held[sha256] -= times
        if not self._held[sha256]:
            del self._held[sha256]
            self._loose += self._size_of(sha256)

    def _size_of(self, sha256: str) -> int:
        return len(self._known[sha256][1]) if sha256 in self._known else 0

    def _forget(self) -> None:
        if self._loose <= self._max_bytes:
            return
        for sha256 in [sha256 for sha256 in self._known if sha256 not in self._held]:
            if self._loose <= self._max_bytes:
                return
            self._loose -= self._size_of(sha256)
            del self._known[sha256]
