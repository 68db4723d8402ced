"""How a training stage is watched, and how a person stops it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.storage import Folder
from cluster.telemetry import Metrics
from cluster.trackers import Tracking

LINE_EVERY_S = 15.0  # between two lines where there is no terminal to draw a bar on


class TrainingProgress:
    """Steps as a bar (a line now and then where there is no terminal), and every number to the run's metrics.

    `rates` are running means over the recent steps, by name; a kind that a step does not have keeps its last mean.
    """

    def __init__(
        self,
        name: str,
        folder: Folder,
        steps: int,
        done: int = 0,
        console: Console | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self._name = name
        self._console = console or Console(stderr=True)
        self._metrics = Metrics(folder, resume_at=done if done else None, tracking=tracking, say=self.say)
        self._bar = Progress(
            TextColumn(name),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, line="")
        self._means: dict[str, float] = defaultdict(float)
        self._steps, self._printed_at = steps, time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._metrics.close()

    def step(self, step: int, numbers: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """`numbers` holds at least loss, tokens and seconds of step `step` (the first is 1)."""
        for name, value in rates.items():
            known = self._means.get(name)
            self._means[name] = value if known is None else 0.9 * known + 0.1 * value
        speed = numbers["tokens_seen"] / max(numbers["seconds"], 1e-9)
        shown = " ".join(f"{name} {value:.0%}" for name, value in sorted(self._means.items()))
        line = f"loss {numbers['loss']:.3f}  {speed:,.0f} tok/s  exact: {shown}"
        self._bar.update(self._task, completed=step, line=line)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._printed_at >= LINE_EVERY_S or step == self._steps):
            self._printed_at = now
            self.say(f"{self._name} {step}/{self._steps}  {line}")
        exact = {f"exact/{name}": value for name, value in rates.items()}
        self._metrics.log(step, {**numbers, "tokens_per_s": speed, **exact})

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class StopRequested:
    """Whether a person has asked to stop. True as a condition once they have."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stopped_by_signals() -> Iterator[StopRequested]:
    """Within, the first Ctrl-C or SIGTERM only asks to stop; the second one interrupts at once.

    Raise KeyboardInterrupt at the end when it came too late to be heeded: what follows is not to begin.
    """
    asked = StopRequested()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    def stop(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.signal = signal.Signals(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt(f"stopped by {asked.signal}")


@contextmanager
def interrupts_noted(at_latest: float | None = None) -> Iterator[list[int]]:
    """Within, Ctrl-C interrupts as ever, and is noted in the list that this yields.

    A KeyboardInterrupt that meets a library in an import, a callback or a destructor may be swallowed there. Where
    nothing can be lost, `at_latest` is how many seconds later the process then ends all the same.
    """
    pressed: list[int] = []
    last = threading.Timer(at_latest or 0.0, _end)
    last.daemon = True
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # only the main thread may handle signals
        return

    def press(number: int, _: object) -> None:
        pressed.append(number)
        if at_latest is not None and len(pressed) == 1:
            last.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
        last.cancel()


def _end() -> None:
    print("mmsearch: stopped.", file=sys.stderr, flush=True)
    os._exit(130)
