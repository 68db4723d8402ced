"""`mmsearch` commands as processes of their own, as a person starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 0.2  # between two looks at what a process has left
SHOWN = 4000  # characters of a command's last words
OUTLIVES_S = 60.0  # for what a killed command had started to notice


class Command:
    """One running `mmsearch` with its output in a file. As a context manager it leaves no process behind."""

    def __init__(self, log: Path, *words: str, cwd: Path = ROOT) -> None:
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workflows.cli", *words],
                stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env={**os.environ, "COLUMNS": "200"},
            )  # fmt: skip
        self._began = time.monotonic()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._began

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until it has done something; fails when it ends or does nothing of the kind in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing after {seconds} s:\n{self.said[-SHOWN:]}"
            try:
                code = self._process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            assert condition(), f"ended early with {code}:\n{self.said[-SHOWN:]}"

    def ends_with(self, code: int, seconds: float) -> str:
        """Wait for its end; returns all it said."""
        ended = self._process.wait(seconds)
        assert ended == code, f"ended with {ended}, not {code}:\n{self.said[-SHOWN:]}"
        return self.said

    def interrupt(self) -> None:
        """As Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def workers(self, title: str) -> list[psutil.Process]:
        """Its processes, Ray's workers among them, whose title has this word."""
        return [process for process in self._family() if title in _title(process)]

    def kill(self) -> list[str]:
        """Kill it alone, without a warning; returns the titles of those that it had started and that outlive it."""
        left = killed_with_its_family(psutil.Process(self._process.pid))
        self._process.wait(60)
        return left

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)


def killed_with_its_family(process: psutil.Process) -> list[str]:
    """Kill it alone, without a warning; returns the titles of those that it had started and that outlive it, which then
    are killed, too."""
    family = process.children(recursive=True)
    process.kill()
    _, left = psutil.wait_procs(family, timeout=OUTLIVES_S)
    titles = [_title(one) for one in left]
    for one in left:
        one.kill()
    return [title for title in titles if title]


def _title(process: psutil.Process) -> str:
    """Empty when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
