"""A command that is started again when it crashes.

    parent (this file) --starts--> child: the same command, in a process of its own
                                     ends with 0, 2 or 130: done, refused, stopped: the parent ends so too
                                     ends with anything else, or by a signal: again, from where its checkpoints are

What a child cannot mend by itself ends it (a learner's rank that died, a controller that was killed); all that a run
needs to go on is in its folder. So one way of starting again serves for every way of dying.

Always true: who asks the parent to stop (SIGINT, SIGTERM) asks the child, once, and nothing is started after that; a
parent that dies takes the child along; `limit` crashes without any progress between them end it. A progress that
storage does not tell counts as none: an outage is among what a run is started again after.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

from cluster.storage_failures import reason_of

SUPERVISED = "MMSEARCH_SUPERVISED"  # in a child's environment: its parent's process id
UNTOLD = object()  # in place of a progress that could not be asked for
FINAL = (0, 2, 130)  # done, refused for what a person has to mend, stopped
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
_PR_SET_PDEATHSIG = 1  # prctl.h


class Restarts:
    """Decides when to start again after crashes.

    `progress`: anything that changes when the command has got further, or UNTOLD.
    """

    def __init__(self, limit: int, progress: object) -> None:
        self._limit, self._seen = limit, progress
        self.in_vain = 0  # crashes since the last progress

    def wait_after(self, progress: object) -> float | None:
        """Seconds until the next start after a crash, at which `progress` had been made; None: there is none."""
        if progress is not UNTOLD:
            if self._seen is not UNTOLD and progress != self._seen:
                self.in_vain = 0
            self._seen = progress
        self.in_vain += 1
        if self.in_vain > self._limit:
            return None
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self.in_vain - 1))


def supervise(command: Sequence[str], limit: int, progress: Callable[[], object], say: Callable[[str], None]) -> int:
    """Run `command` until it ends for good; returns the exit code to end with. To be called in the main thread.

    `progress` may raise OSError, which is said; what else it raises ends the supervision.
    """
    restarts = Restarts(limit, _told(progress, say))
    wait = 0.0
    with _asked() as asked:
        while not asked.within(wait):
            # a session of its own: else Ctrl-C in a terminal would reach it twice, which means at once
            environ = {**os.environ, SUPERVISED: str(os.getpid())}
            child = subprocess.Popen(command, env=environ, start_new_session=True)
            asked.concerns(child)
            code = child.wait()
            again = None if asked.ever or code in FINAL else restarts.wait_after(_told(progress, say))
            if again is None:
                return code if code >= 0 else 128 - code
            wait = again
            say(
                f"it ended with {_spoken(code)}; again in {wait:.0f} s ({restarts.in_vain} of {limit} without progress)"
            )
    return 130


def end_with_parent() -> None:
    """In a supervised child: be asked to stop when the parent dies, or at once when it has died. Only Linux can say so.

    What this process starts is not supervised.
    """
    parent = int(os.environ.pop(SUPERVISED))
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was told
            signal.raise_signal(signal.SIGTERM)


def _told(progress: Callable[[], object], say: Callable[[str], None]) -> object:
    try:
        return progress()
    except OSError as error:
        say(f"how far it has got is not known: {reason_of(error)}")
        return UNTOLD


class _Asked:
    """Passes on what the parent was asked, to the child that runs or, between two, to the one that is being started."""

    def __init__(self) -> None:
        self.ever = False
        self._child: subprocess.Popen[bytes] | None = None
        self._kept: int | None = None  # a signal that found no child
        self._wake: SimpleQueue[int] = SimpleQueue()  # not an Event: whose lock the code that is interrupted may hold

    def pass_on(self, number: int, _: object) -> None:
        """The signal handler: it may run between any two lines of the others."""
        self.ever = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
        else:
            self._kept = number
        self._wake.put(number)

    def within(self, seconds: float) -> bool:
        """Whether it was asked before, or is within `seconds`, which it then does not wait for."""
        with suppress(Empty):
            self._wake.get(timeout=0.0 if self.ever else seconds)
        return self.ever

    def concerns(self, child: subprocess.Popen[bytes]) -> None:
        """From now on signals are for `child`, and so is the one that came while it was being started."""
        self._child = child
        if self._kept is not None:
            child.send_signal(self._kept)


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
