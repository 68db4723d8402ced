"""How much memory a run takes: the proportional set size (PSS) of a process and all its descendants, watched.

PSS counts a page that several processes share once, in parts; summing resident sizes would count Ray's object store
and every shared library once per process. Sizes are bytes.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path

import psutil


def pss(pid: int) -> int:
    """Of one process: 0 once it has ended. Where the kernel does not tell, its resident size."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def tree_pss() -> int:
    """Of this process and everything that it started, a Ray cluster started here included."""
    here = psutil.Process()
    return sum(pss(process.pid) for process in (here, *here.children(recursive=True)))


class MemoryWatch(AbstractContextManager["MemoryWatch"]):
    """Remembers the largest `tree_pss` it saw, looking every few seconds from a thread."""

    def __init__(self, every_s: float = 5.0) -> None:
        self.peak = 0
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        self.look()

    def look(self) -> int:
        """Measure now; returns the bytes."""
        now = tree_pss()
        self.peak = max(self.peak, now)
        return now

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self.look()
