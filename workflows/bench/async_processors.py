"""Processor time of the learner's, the samplers' and this process while a run goes on, and what of it is uncontended.

Where sampling and training alternate (`max_staleness: 0`) neither takes the cores from the other. vLLM's processes
spin for a while after their last message: what samplers use while the learner trains is no sampling, and is left out.
The run's driver is this process: the controller with its loops, and Ray's client with what it sends and fetches for it.
Only descendants of this process are seen; on a cluster that was joined there is nothing to measure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import psutil

LEARNER, SAMPLER = "learner", "sampler"
TITLES = (("ray::PolicyLearner", LEARNER), ("ray::RolloutSampler", SAMPLER), ("VLLM::", SAMPLER))
EVERY_S = 0.1
SEARCH_EVERY_S = 2.0  # for processes that have been started meanwhile


@dataclass(frozen=True)
class Used:
    """CPU seconds of all processes of a role since they were started, at a time (unix seconds)."""

    at: float
    learner: float
    sampler: float
    controller: float


def uncontended(samples: Sequence[Used], steps: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """CPU seconds of learner, samplers and controller over some steps of a run in which the first two alternate.

    A step is (begin, end of sampling, end), in unix seconds: training lies between the last two.
    """
    learner = sampler = controller = 0.0
    for begin, sampled, end in steps:
        first, last = _at(samples, begin), _at(samples, end)
        learner += last.learner - first.learner
        sampler += _at(samples, sampled).sampler - first.sampler
        controller += last.controller - first.controller
    return learner, sampler, controller


def _at(samples: Sequence[Used], at: float) -> Used:
    """The first sample not before a time, or the last one."""
    return next((sample for sample in samples if sample.at >= at), samples[-1])


class ProcessorWatch(AbstractContextManager["ProcessorWatch"]):
    """Looks every `EVERY_S` from a thread."""

    def __init__(self) -> None:
        self.samples: list[Used] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="processor-watch", daemon=True)

    def __enter__(self) -> ProcessorWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        here = psutil.Process()
        known: dict[psutil.Process, str] = {}
        searched = 0.0
        while not self._stop.wait(EVERY_S):
            if time.monotonic() - searched > SEARCH_EVERY_S:
                known, searched = _workers(here), time.monotonic()
            seconds = {LEARNER: 0.0, SAMPLER: 0.0}
            for process, role in known.items():
                try:
                    times = process.cpu_times()
                except psutil.Error:  # it has ended
                    continue
                seconds[role] += times.user + times.system
            controller = time.process_time() - time.thread_time()  # all threads of this process but this one
            self.samples.append(Used(time.time(), seconds[LEARNER], seconds[SAMPLER], controller))


def _workers(here: psutil.Process) -> dict[psutil.Process, str]:
    found: dict[psutil.Process, str] = {}
    for process in here.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        role = next((role for mark, role in TITLES if title.startswith(mark)), None)
        if role is not None:
            found[process] = role
    return found
