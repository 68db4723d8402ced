"""A tracker at arm's length: what it does, it does in a thread of its own, and training never learns of it.

Always true: `log` returns at once; a tracker that raised is told of once and given nothing more; one that is too slow
loses steps, which is told when it begins and counted at the end; `close` waits no longer than it is allowed to.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping

from cluster.trackers import TrackedRun, Tracker, start

QUEUED = 256  # steps that may wait for a slow tracker
LONGEST = 300  # characters of an error that are told


class TrackerThread:
    """Feeds one tracker. One process, one caller."""

    def __init__(self, name: str, run: TrackedRun, say: Callable[[str], None], queued: int = QUEUED) -> None:
        self._name, self._run, self._say = name, run, say
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(queued)
        self._failed = False
        self.dropped = 0  # steps that it was too slow for
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the numbers of a step over, or drop them."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait((step, metrics))
        except queue.Full:
            if not self.dropped:
                self._say(f"the tracker {self._name} is too slow: from step {step} on it misses steps")
            self.dropped += 1

    def close(self, within_s: float) -> None:
        """Let it finish what waits. One that does not in time is left behind: its thread ends with the process."""
        if self._failed:
            return
        deadline = time.monotonic() + within_s
        try:
            self._waiting.put(None, timeout=within_s)
        except queue.Full:
            deadline = 0.0  # nothing was taken in all that time
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._failed:
            return
        unsaid = sum(item is not None for item in list(self._waiting.queue)) if self._thread.is_alive() else 0
        if self._thread.is_alive():
            waiting = f"; {unsaid} steps were still waiting" if unsaid else ""
            self._say(f"the tracker {self._name} did not finish within {within_s:.0f} s and is left behind{waiting}")
        if self.dropped:
            self._say(f"the tracker {self._name} missed {self.dropped} steps: it was too slow (metrics.jsonl has them)")

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = start(self._name, self._run)
            while (item := self._waiting.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except Exception as error:  # whatever a tracker does wrong, the run goes on
            self._failed = True
            self._say(f"the tracker {self._name} is dropped: {type(error).__name__}: {error}"[:LONGEST])
