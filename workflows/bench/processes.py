"""Who used the processors: CPU seconds of this process's descendants by their role."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import psutil

# by what stands in a process's title; the first that fits
ROLES = (
    ("ray::BenchSampler", "sampler"),
    ("ray::SearchWorker", "search"),
    ("ray::SearchPool", "search"),
    ("ray::AnswerCache", "search"),
    ("ray::QuotaBroker", "search"),
    ("ray::RewardEvaluator", "reward"),
    ("EngineCore", "engine core"),
    ("VLLM::Worker", "engine worker"),
    ("raylet", "ray"),
    ("gcs_server", "ray"),
    ("ray::", "ray"),
    ("/ray/", "ray"),
)


def role_of(title: str) -> str:
    """The role of a process with this command line; "other" for none of ours."""
    return next((role for mark, role in ROLES if mark in title), "other")


def cpu_seconds(raw: int | None = None) -> dict[str, float]:
    """Used so far. `raw` is the process of the bare engine: its own and its engine's roles are called `raw ...`."""
    here = psutil.Process()
    used: defaultdict[str, float] = defaultdict(float)
    used["driver"] += _seconds(here)
    beneath = set() if raw is None else _beneath(raw)
    for process in here.children(recursive=True):
        try:
            role = role_of(" ".join(process.cmdline()))
            if process.pid == raw:
                role = "raw front end"
            elif process.pid in beneath:
                role = f"raw {role}"
            used[role] += _seconds(process)
        except psutil.Error:  # it has ended
            continue
    return dict(used)


def between(before: Mapping[str, float], after: Mapping[str, float], least: float = 0.005) -> dict[str, float]:
    """What was used from `before` to `after`, roles that did next to nothing left out."""
    used = {role: seconds - before.get(role, 0.0) for role, seconds in after.items()}
    return {role: seconds for role, seconds in used.items() if seconds >= least}


def scheduling(pids: Sequence[int]) -> list[tuple[int, str]]:
    """(niceness, autogroup) of processes: two sides of a comparison should have the same."""
    found: list[tuple[int, str]] = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/autogroup") as file:
                group = file.read().strip()
        except OSError:  # a kernel without them
            group = ""
        found.append((psutil.Process(pid).nice(), group))
    return found


def _beneath(pid: int) -> set[int]:
    try:
        return {process.pid for process in psutil.Process(pid).children(recursive=True)}
    except psutil.Error:
        return set()


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
