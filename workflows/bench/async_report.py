"""Runs of the bench held against each other, and against what asynchrony is to reach. Pure.

Runs are compared within one trace and one seed alone; what is told of several seeds is the median of their ratios. What
two runs answered is compared question by question; of the difference over all seeds the interval is told, too, and a
target that lies within it is neither reached nor missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from workflows.bench.async_form import CALIBRATION, ToolTrace
from workflows.bench.async_numbers import RunNumbers, Used, lower_bound_s
from workflows.bench.ratios import Spread
from workflows.evaluate.bootstrap import COVERS, resampled

RESAMPLES = 2000
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
    interval: tuple[float, float] | None = None  # of 95 %; None where nothing is known of the spread

    @property
    def verdict(self) -> str:
        """reached | missed | not told apart."""
        verdicts = {self._reaches(value) for value in self.interval or (self.value,)}
        if len(verdicts) > 1:
            return "not told apart"
        return "reached" if verdicts == {True} else "missed"

    def _reaches(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


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

    def lost(self, trace: str, arm: str, against: str) -> list[list[float]]:
        """Points by which `arm` is below `against`, -100, 0 or 100: for each seed that has both, of each question that
        both were asked."""
        pairs = [(one, self._by_place.get((trace, against, one.seed))) for one in self.of(trace, arm)]
        found = [
            [100 * (other.answers[id] - one.answers[id]) for id in sorted(one.answers.keys() & other.answers.keys())]
            for one, other in pairs
            if other is not None
        ]
        return [points for points in found if points]

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
        for trace in self._traces:
            if lost := self.lost(trace, ASYNC, "sync"):
                says = f"{trace}: points of exact match that {ASYNC} is below sync"
                found.append(Finding(says, 3.0, fmean(map(fmean, lost)), True, interval(lost)))
        return found

    def _paired(
        self, trace: str, arm: str, other: str, ratio: Callable[[RunNumbers, RunNumbers], float]
    ) -> Spread | None:
        places = [(one, self._by_place.get((trace, other, one.seed))) for one in self.of(trace, arm)]
        ratios = [ratio(one, against) for one, against in places if against is not None]
        return Spread.of(ratios) if ratios else None


def interval(by_seed: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds of their means, by the bootstrap of `mmsearch evaluate`."""
    tables = [(np.array(values)[:, None], np.ones((len(values), 1))) for values in by_seed]
    means = resampled(tables, RESAMPLES, np.random.default_rng(0))
    low, high = np.percentile(means, COVERS)
    return float(low), float(high)
