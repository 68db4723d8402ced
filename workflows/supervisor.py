"""A command that is started again when it crashes.

    parent (this file) --starts--> child: the same command, in a process of its own
                                     ends with 0, 2 or 130: done, refused, stopped: the parent ends so too
                                     ends with anything else, or by a signal: again, from where its checkpoints are

What a child cannot mend by itself ends it (a learner's rank that died, a controller that was killed); all that a run
needs to go on is in its folder. So one way of starting again serves for every way of dying.

Always true: who asks the parent to stop (SIGINT, SIGTERM) asks the child, once, and nothing is started after that; a
parent that dies takes the child along; `limit` crashes without any progress between them end it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

SUPERVISED = "MMSEARCH_SUPERVISED"  # in a child's environment
FINAL = (0, 2, 130)  # done, refused for what a person has to mend, stopped
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
_PR_SET_PDEATHSIG = 1  # prctl.h


class Restarts:
    """Decides whether to start again. `progress`: anything that changes when the command has got further."""

    def __init__(self, limit: int, progress: object) -> None:
        self._limit, self._seen = limit, progress
        self.in_vain = 0  # crashes since the last progress

    def wait_after(self, code: int, progress: object) -> float | None:
        """Seconds until the next start after an end with `code`; None: there is none. Negative codes are signals."""
        if code in FINAL:
            return None
        if progress != self._seen:
            self._seen, self.in_vain = progress, 0
        self.in_vain += 1
        if self.in_vain > self._limit:
            return None
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self.in_vain - 1))


def supervise(command: Sequence[str], limit: int, progress: Callable[[], object], say: Callable[[str], None]) -> int:
    """Run `command` until it ends for good; returns the exit code to end with. To be called in the main thread."""
    restarts = Restarts(limit, progress())
    with _asked() as asked:
        while True:
            # a session of its own: else Ctrl-C in a terminal would reach it twice, which means at once
            child = subprocess.Popen(command, env={**os.environ, SUPERVISED: "1"}, start_new_session=True)
            asked.child = child
            code = child.wait()
            wait = None if asked.event.is_set() else restarts.wait_after(code, progress())
            if wait is None:
                return code if code >= 0 else 128 - code
            say(
                f"it ended with {_spoken(code)}; again in {wait:.0f} s ({restarts.in_vain} of {limit} without progress)"
            )
            if asked.event.wait(wait):
                return 130


def end_with_parent() -> None:
    """In a supervised child: be asked to stop when the parent dies. Only Linux can say so."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class _Asked:
    def __init__(self) -> None:
        self.event = threading.Event()
        self.child: subprocess.Popen[bytes] | None = None

    def pass_on(self, number: int, _: object) -> None:
        self.event.set()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)


@contextmanager
def _asked() -> Iterator[_Asked]:
    asked = _Asked()
    before = {number: signal.signal(number, asked.pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spoken(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
