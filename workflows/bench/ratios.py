"""Numbers of passes, and what may be said of several of them. Pure.

The two sides of a comparison alternate (A B A B), and a ratio is always taken between neighbours: what slows the
machine for a while slows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Pass:
    """One side's work, once. `cpu` are seconds of processor time by process role."""

    seconds: float
    turns: int
    sampled: int  # tokens
    prompt: int  # tokens, pictures expanded, prefix cache not taken off
    steady: float  # sampled tok/s while every place was taken, the tail of the last episodes left out
    cpu: dict[str, float]

    @property
    def sampled_per_s(self) -> float:
        return self.sampled / self.seconds

    @property
    def total_per_s(self) -> float:
        return (self.sampled + self.prompt) / self.seconds


@dataclass(frozen=True)
class Spread:
    """A median, and the least and greatest value beside it."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raise `ValueError` for none."""
        if not values:
            raise ValueError("there is nothing to take a median of")
        return cls(median(values), min(values), max(values), len(values))


def paired(first: Sequence[float], second: Sequence[float]) -> Spread:
    """The ratio first/second of neighbours. Raise `ValueError` for sequences of different lengths."""
    return Spread.of([a / b for a, b in zip(first, second, strict=True)])


def steady_rate(ended: Sequence[tuple[float, int]], began: float, until: float) -> float:
    """Tokens a second from `began` to `until`; `ended` are (time, tokens) of turns. 0 where there is no such time."""
    if until <= began:
        return 0.0
    return sum(tokens for at, tokens in ended if began <= at <= until) / (until - began)


def shares(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """Each as a share of `whole`, and what is left as `waiting`; never below 0 by rounding of the clock."""
    if whole <= 0:
        return dict.fromkeys([*seconds, "waiting"], 0.0)
    parts = {name: value / whole for name, value in seconds.items()}
    return parts | {"waiting": max(0.0, 1.0 - sum(parts.values()))}
