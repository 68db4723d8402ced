"""What a run of the bench comes down to, from what it wrote: times, idleness, staleness, waste, and the lower bound.

Pure. A *steady* step is one after the first two (which fill the pipeline and compile) and before the last
`max_staleness` (in which no question is admitted any more, so that nothing is sampled beside them), and during which
no episode had to be played again because the infrastructure failed. Asynchronous steps
come in bursts: a few short ones on groups that were finished together, then a long one. So ratios are made of means; a
median would tell the short ones alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from workflows.bench.async_form import BY_NAME, Arm

WARM_UP = 2  # steps
SMOOTHED = 3  # steps that a reward is the mean of
STEP_S, REWARD = "time/step_s", "sampled/reward/mean"

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Used:
    """CPU seconds of one step."""

    learner: float
    sampler: float
    controller: float  # the driver's process: the controller, and Ray's client


@dataclass(frozen=True)
class RunNumbers:
    """One run of one arm. Times are seconds, counts are of the whole run."""

    trace: str
    arm: str
    seed: int
    step_s: tuple[float, ...]  # of each step
    reward: tuple[float, ...]  # mean of the episodes sampled for each step
    idle: dict[str, float]  # share of the whole run, by role and cause
    staleness: dict[int, float]  # share of the trained tokens by age in versions
    sampled: int  # tokens
    wasted: int  # of them, never trained on
    masked: int  # episodes that the infrastructure spoilt for good
    searches: int  # calls of tools
    sent: int  # requests that they became
    quota_wait_s: float  # of all calls together
    requests: dict[str, int]  # of those sent, by endpoint with a quota
    used: Used | None = None  # of a steady step, where nothing overlaps
    spoilt: tuple[int, ...] = ()  # steps, from 0, during which the infrastructure failed episodes: no steady ones
    answers: dict[str, float] = field(default_factory=dict)  # exact match of the last weights, by test question

    @property
    def mean_s(self) -> float:
        """A steady step; what ratios are made of."""
        return fmean(self._steady_s)

    @property
    def median_s(self) -> float:
        """A steady step."""
        return median(self._steady_s)

    @property
    def _steady_s(self) -> list[float]:
        usual = steady(len(self.step_s), BY_NAME[self.arm].max_staleness)
        return [self.step_s[i] for i in usual if i not in self.spoilt] or [self.step_s[i] for i in usual]

    @property
    def exact_match(self) -> float | None:
        """Of the last weights; None where they were not asked."""
        return fmean(self.answers.values()) if self.answers else None

    @property
    def controller_share(self) -> float | None:
        """CPU time of the controller by the time of a steady step; None where it was not measured."""
        return self.used.controller / self.mean_s if self.used else None

    @property
    def wall_s(self) -> float:
        """From the first publishing of weights to the last step; the actors' start is left out."""
        return sum(self.step_s)

    def reward_after_s(self, target: float) -> float | None:
        """When the mean reward over `SMOOTHED` steps first reached the target; None when it never did."""
        for i in range(SMOOTHED, len(self.reward) + 1):
            if sum(self.reward[i - SMOOTHED : i]) / SMOOTHED >= target:
                return sum(self.step_s[:i])
        return None


def steady(steps: int, max_staleness: int) -> range:
    """Indices of the steady steps, from 0; of a run too short for any, what comes after its warm-up, or all."""
    for found in (range(WARM_UP, steps - max_staleness), range(WARM_UP, steps)):
        if len(found):
            return found
    return range(steps)


def numbers(
    trace: str,
    arm: Arm,
    seed: int,
    lines: Sequence[Line],
    ages: Mapping[int, int],
    searched: Mapping[str, Any],
    requests: Mapping[str, int],
) -> RunNumbers:
    """From the lines of a run's metrics, the ages of the tokens it trained on, and its searches: the totals of the
    ledger, and by endpoint."""
    steps = [line for line in lines if STEP_S in line]
    if not steps:
        raise ValueError("a run without a step has no numbers")
    step_s = tuple(float(line[STEP_S]) for line in steps)
    return RunNumbers(
        trace=trace,
        arm=arm.name,
        seed=seed,
        step_s=step_s,
        reward=_rewards(steps),
        idle=idle_shares(steps),
        staleness=shares(ages),
        sampled=int(sum(line.get("since_last_step/tokens/sampled", 0) for line in steps)),
        wasted=int(sum(line.get("tokens/never_trained_on", 0) for line in steps)),
        masked=int(sum(line.get("since_last_step/episodes/masked", 0) for line in steps)),
        searches=int(searched["calls"]),
        sent=int(searched["requests"]),
        quota_wait_s=float(searched["waited_s"]),
        requests=dict(requests),
        spoilt=tuple(i for i, line in enumerate(steps) if line.get("since_last_step/episodes/failed_attempts")),
    )


def _rewards(steps: Iterable[Line]) -> tuple[float, ...]:
    """By step; one for which no group was finished has that of the step before it."""
    found: list[float] = []
    for line in steps:
        found.append(float(line.get(REWARD, found[-1] if found else 0.0)))
    return tuple(found)


def idle_shares(steps: Iterable[Line]) -> dict[str, float]:
    """Of the wall-clock, by `learner/cause` and `sampler/cause`, as the controller's watch saw it."""
    seconds: Counter[str] = Counter()
    whole = 0.0
    for line in steps:
        whole += line[STEP_S]
        for name, value in line.items():
            if name.startswith("idle/") and name.endswith("_s"):
                role, _, cause = name.removeprefix("idle/").removesuffix("_s").partition("_")
                seconds[f"{role}/{cause}"] += value
    return {name: value / whole for name, value in sorted(seconds.items())} if whole else {}


def phases(steps: Sequence[Line]) -> list[tuple[float, float, float]]:
    """(begin, end of sampling, end of training) in unix seconds, of the steady steps of a run of staleness 0.

    A step's line is written at its end, after publishing; the next one begins with it.
    """
    found: list[tuple[float, float, float]] = []
    for i in steady(len(steps), 0):
        if i > 0:
            line = steps[i]
            trained = line["time"] - line["publish_lag_s"]
            training = line["idle/learner_busy_share"] * line[STEP_S]
            found.append((steps[i - 1]["time"], trained - training, trained))
    return found


def shares(counts: Mapping[int, int]) -> dict[int, float]:
    """Each count as a share of all, in order of key; empty for none."""
    whole = sum(counts.values())
    return {key: counts[key] / whole for key in sorted(counts)} if whole else {}


def lower_bound_s(used: Used, cores: int, calls: Mapping[str, float], per_second: float) -> float:
    """Seconds that a step takes at least where all share the cores: its work on all of them, or its calls by the quota.

    `calls` are requests of a step by endpoint, each with a quota of `per_second` (0: none).
    """
    work = (used.learner + used.sampler) / cores
    return max(work, max(calls.values(), default=0.0) / per_second if per_second else 0.0)
