"""95 % intervals by the percentile bootstrap. Pure.

One seed: its questions are drawn with replacement, all samples of a question together. Several seeds: two levels,
first seeds, then questions within each drawn seed; a resample's value is the mean of its seeds' values, as the point
estimate is. With few seeds the spread between them is told too small, by sqrt((n - 1) / n): 0.82 for three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workflows.evaluate.metrics import ratios, sums
from workflows.evaluate.rows import Row

COVERS = (2.5, 97.5)  # percentiles
AT_ONCE = 1 << 22  # weights in memory: resamples x questions

Values = npt.NDArray[np.float64]


def intervals(
    rows_by_seed: Sequence[Sequence[Row]], max_calls: int, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """(low, high) of every measure that is defined; the same for the same rows, in whatever order they come.

    `max_calls`: tool calls that the protocol allows in an episode.
    """
    rng = np.random.default_rng(seed)
    values = resampled([sums(rows, max_calls) for rows in rows_by_seed], resamples, rng)
    found: dict[str, tuple[float, float]] = {}
    for name, column in zip(ratios(max_calls), values.T, strict=True):
        defined = column[~np.isnan(column)]  # a resample may hold none of the few questions that searched
        if defined.size:
            low, high = np.percentile(defined, COVERS)
            found[name] = (float(low), float(high))
    return found


def resampled(tables: Sequence[tuple[Values, Values]], resamples: int, rng: np.random.Generator) -> Values:
    """Values of every measure in every resample [resamples, measures]; nan where a measure is undefined."""
    if len(tables) == 1:
        return _within(*tables[0], resamples, rng)
    total = np.zeros((resamples, tables[0][0].shape[1]))
    defined = np.zeros_like(total)
    for _ in tables:  # as many seeds are drawn as there are
        drawn = rng.integers(len(tables), size=resamples)
        for which, (parts, wholes) in enumerate(tables):
            here = np.flatnonzero(drawn == which)
            values = _within(parts, wholes, len(here), rng)
            total[here] += np.nan_to_num(values)
            defined[here] += ~np.isnan(values)
    return _quotient(total, defined)


def _within(parts: Values, wholes: Values, resamples: int, rng: np.random.Generator) -> Values:
    """The same for one seed, whose sums are [questions, measures]."""
    n = len(parts)
    values = np.full((resamples, parts.shape[1]), np.nan)
    if not n:
        return values
    step = max(1, AT_ONCE // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        picked = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(picked.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        values[start : start + size] = _quotient(weights @ parts, weights @ wholes)
    return values


def _quotient(parts: Values, wholes: Values) -> Values:
    return np.divide(parts, wholes, out=np.full_like(parts, np.nan), where=wholes > 0)
