"""Runs of the bench held against each other, and against what asynchrony is to reach. Pure.

Runs are compared within one trace and one seed alone; what is told of several seeds is the median of their ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from workflows.bench.async_form import CALIBRATION, ToolTrace
from workflows.bench.async_numbers import RunNumbers, Used, lower_bound_s
from workflows.bench.ratios import Spread

ASYNC = "async-2"  # the arm that the targets are about


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    start: str  # the model that they start from
    traces: tuple[ToolTrace, ...]
    groups_per_step: int
    group_size: int
    cores: int


@dataclass(frozen=True)
class Finding:
    """A target, and what was reached; `at_most`: the value is to be no greater than the bound."""

    says: str
    bound: float
    value: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


class Report:
    """All runs of a bench."""

    def __init__(self, setting: Setting, runs: Sequence[RunNumbers]) -> None:
        self.setting, self.runs = setting, tuple(runs)
        self._by_place = {(one.trace, one.arm, one.seed): one for one in runs}
        self._traces = {trace.name: trace for trace in setting.traces}

    def of(self, trace: str, arm: str = "") -> list[RunNumbers]:
        """The runs under a trace, of one arm or of all, in the order in which they were made."""
        return [one for one in self.runs if one.trace == trace and arm in ("", one.arm)]

    def arms(self, trace: str) -> list[str]:
        return list(dict.fromkeys(one.arm for one in self.of(trace)))

    def speedup(self, trace: str, arm: str, over: str) -> Spread | None:
        """How many times faster than `over` a steady step of `arm` is on average, over the seeds that have both."""
        return self._paired(trace, arm, over, lambda mine, other: other.mean_s / mine.mean_s)

    def loss(self, trace: str, arm: str, against: str) -> float | None:
        """Points of exact match that `arm` ends below `against`: the mean over the seeds that have both."""
        pairs = [(one, self._by_place.get((trace, against, one.seed))) for one in self.of(trace, arm)]
        lost = [
            100 * (other.exact_match - one.exact_match)
            for one, other in pairs
            if other is not None and other.exact_match is not None and one.exact_match is not None
        ]
        return fmean(lost) if lost else None

    def used(self, seed: int) -> Used | None:
        """What a step costs where nothing overlaps, measured with this seed in this bench; None where it was not."""
        found = self._by_place.get((*CALIBRATION, seed))
        return found.used if found else None

    def bound_s(self, one: RunNumbers) -> float | None:
        """The least that a step of this run could take on these cores under its quota; None where it is not known."""
        used = self.used(one.seed)
        if used is None:
            return None
        calls = {endpoint: n / len(one.step_s) for endpoint, n in one.requests.items()}
        return lower_bound_s(used, self.setting.cores, calls, self._traces[one.trace].per_second)

    def over_bound(self, trace: str, arm: str) -> Spread | None:
        """A steady step as a multiple of its lower bound, over the seeds."""
        ratios = [one.mean_s / bound for one in self.of(trace, arm) if (bound := self.bound_s(one))]
        return Spread.of(ratios) if ratios else None

    def findings(self) -> list[Finding]:
        """Every target that these runs can tell."""
        told = [
            (f"log-normal: {ASYNC} over rounds", 3.0, self.speedup("log-normal", ASYNC, "rounds"), False),
            (f"log-normal: {ASYNC} over sync", 2.0, self.speedup("log-normal", ASYNC, "sync"), False),
            (f"near-zero: {ASYNC} over rounds", 1.0, self.speedup("near-zero", ASYNC, "rounds"), False),
            (f"near-zero: {ASYNC} over sync", 1.0, self.speedup("near-zero", ASYNC, "sync"), False),
            *(
                (f"{trace}: {ASYNC} over the lower bound", 1.35, self.over_bound(trace, ASYNC), True)
                for trace in self._traces
            ),
        ]
        found = [Finding(says, bound, spread.median, most) for says, bound, spread, most in told if spread]
        lost = self.loss("log-normal", ASYNC, "rounds")
        if lost is not None:
            found.append(Finding(f"log-normal: points of exact match that {ASYNC} is below rounds", 3.0, lost, True))
        return found

    def _paired(
        self, trace: str, arm: str, other: str, ratio: Callable[[RunNumbers, RunNumbers], float]
    ) -> Spread | None:
        places = [(one, self._by_place.get((trace, other, one.seed))) for one in self.of(trace, arm)]
        ratios = [ratio(one, against) for one, against in places if against is not None]
        return Spread.of(ratios) if ratios else None
