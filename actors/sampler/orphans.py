"""Ends an engine's processes when the process that owns them was killed and could not.

vLLM's engine core waits for its client forever when that dies by SIGKILL: each killed sampler would leave its memory
behind. So every engine has a guard, a bare Python process on a pipe from the owner. When the pipe closes without a
word, the guard kills what carries the owner's token in its environment, which every descendant inherits, also one
that was born a moment ago. Linux only (/proc); elsewhere nothing is guarded.

This file is also the guard's program: it imports the standard library alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from types import TracebackType

_TOKEN = "MMSEARCH_ENGINE_OWNER"
_PROC = Path("/proc")


class OrphanGuard:
    """Guards what is spawned inside `with guard.marked():` until `dismiss` is called or this process dies."""

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        command = [sys.executable, "-I", "-S", __file__, self._token]
        quiet = subprocess.DEVNULL
        # a session of its own: Ctrl-C and a killed process group must not take the guard along
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
        )

    def marked(self) -> _Marked:
        """While it is entered, new processes carry the token."""
        return _Marked(self._token)

    def dismiss(self) -> None:
        """The owner has ended its processes itself."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.communicate(b"dismissed", timeout=10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


class _Marked:
    def __init__(self, token: str) -> None:
        self._token = token

    def __enter__(self) -> None:
        self._before = os.environ.get(_TOKEN)
        os.environ[_TOKEN] = self._token

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            os.environ.pop(_TOKEN, None)
        else:
            os.environ[_TOKEN] = self._before


def carriers(token: str) -> list[int]:
    """Process ids that carry the token, this process not among them."""
    mark = f"{_TOKEN}={token}".encode()
    found = []
    for folder in _PROC.glob("[0-9]*"):
        try:
            carries = mark in (folder / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if carries and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def _guard(token: str) -> None:
    """Wait until the owner speaks or is gone; then kill, twice, since the first round may have been forking."""
    if sys.stdin.buffer.read():
        return
    for _ in range(2):
        for pid in carriers(token):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


if __name__ == "__main__":
    _guard(sys.argv[1])
