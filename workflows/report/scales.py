"""From values to places: ticks that people would choose, and numbers as they would write them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
TINY = 1e-290  # below it floating point has no room for ticks


@dataclass(frozen=True)
class Scale:
    """Maps values [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """At most about `n` round values that lie in [low, high]; one where they are the same."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, n - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((nice * power for nice in NICE if nice * power >= rough * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def span(low: float, high: float, *, zero: bool = True) -> tuple[float, float]:
    """A domain that ends on ticks and has a height, also for a single value."""
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, TINY):
        pad = size * 0.1 if size > TINY else 1.0
        low, high = (low if zero and low == 0.0 else low - pad), high + pad
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def written(value: float, step: float | None = None) -> str:
    """A number for an axis or a readout; `step` between ticks decides the decimals."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if step is not None and 0 < step < 1e9:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if decimals and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
            decimals += 1
        if decimals <= 4:
            return f"{value:,.{decimals}f}"
        return f"{value:.3g}"
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}"
