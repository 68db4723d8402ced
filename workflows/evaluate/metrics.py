"""From episodes to numbers. Pure.

Every measure is a ratio of two sums over episodes, so that point estimates here and bootstrap intervals
(workflows/evaluate/bootstrap.py) come from one table. Episodes that infrastructure or data spoilt are counted apart
and enter no sum. What is undefined (the success of searches where nobody searched) is None, never 0.

Several seeds are several runs (of training, of the world): an estimate over them is the mean of the seeds' values,
of those seeds in which it is defined.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from workflows.evaluate.rows import Row

Measures: TypeAlias = dict[str, float | None]  # by the names of `ratios`, and the COUNTS and QUANTILES
Table: TypeAlias = npt.NDArray[np.float64]
GroupedRows: TypeAlias = dict[str, list[list[Row]]]  # by group, then by seed

COUNTS = ("episodes", "failed", "retried", "unjudged")
QUANTILES = {"seconds_p50": 50, "seconds_p95": 95}  # of `seconds`


@dataclass(frozen=True)
class Ratio:
    """sum(part) / sum(whole) over episodes."""

    part: Callable[[Row], float]
    whole: Callable[[Row], float]


def _every(_: Row) -> float:
    return 1.0


def ratios(max_calls: int) -> dict[str, Ratio]:
    """All measures. `max_calls`: tool calls that the protocol allows in an episode."""

    def mean(value: Callable[[Row], float]) -> Ratio:
        return Ratio(value, _every)

    def among(which: Callable[[Row], bool], what: Callable[[Row], float]) -> Ratio:
        return Ratio(lambda row: which(row) and what(row), which)

    return {
        "exact_match": mean(lambda row: row.exact_match),
        "f1": mean(lambda row: row.f1),
        "judged": among(lambda row: row.judged is not None, lambda row: row.judged or 0.0),
        # share of questions that search at all (MMSearch-R1, 4.1), and calls over those allowed (its table 1)
        "search_ratio": mean(lambda row: row.searches > 0),
        "search_ratio_allowed": Ratio(lambda row: row.searches, lambda row: max_calls),
        "searches": mean(lambda row: row.searches),
        "text_searches": mean(lambda row: row.text_searches),
        "image_searches": mean(lambda row: row.image_searches),  # crops included
        "crop_share": Ratio(lambda row: row.crops, lambda row: row.image_searches),
        "search_success": Ratio(lambda row: row.searches_ok, lambda row: row.searches),  # found anything at all
        # over questions whose right first steps are known; then of those over the ones that need a search
        "first_tool_right": among(lambda row: row.first_tools != (), lambda row: row.first_tool in row.first_tools),
        "first_tool_right_required": among(_needs_search, lambda row: row.first_tool in row.first_tools),
        "recovery": among(lambda row: row.searches > 0 and not row.first_hit, lambda row: row.exact_match),
        "evidence_hit": among(lambda row: row.searches > 0, lambda row: row.evidence_hit),
        "cites": among(lambda row: row.ending == "answered", lambda row: row.cited),
        "cited_support": among(lambda row: row.cited, lambda row: row.cited_support),
        "format_valid": mean(lambda row: row.format_ok),
        "gave_up": mean(lambda row: row.ending == "gave_up"),
        "sampled_tokens": mean(lambda row: row.sampled_tokens),
        "total_tokens": mean(lambda row: row.total_tokens),
        "turns": mean(lambda row: row.turns),
        "seconds": mean(lambda row: row.seconds),  # waiting for the shared engine included
        "cost_usd": mean(lambda row: row.cost_usd),
        "cost_usd_per_correct": Ratio(lambda row: row.cost_usd, lambda row: row.exact_match),
        "reward": mean(lambda row: row.reward),
    }


def _needs_search(row: Row) -> bool:
    return row.first_tools != () and "none" not in row.first_tools


def measure(rows: Sequence[Row], max_calls: int) -> Measures:
    """The measures of one seed's episodes."""
    parts, wholes = sums(rows, max_calls)
    named = zip(ratios(max_calls), parts.sum(axis=0), wholes.sum(axis=0), strict=True)
    values: Measures = {name: float(part / whole) if whole else None for name, part, whole in named}
    valid = [row for row in rows if row.counts]
    seconds = [row.seconds for row in valid]
    for name, share in QUANTILES.items():
        values[name] = float(np.percentile(seconds, share)) if seconds else None
    counts = {
        "episodes": len(valid),
        "failed": len(rows) - len(valid),
        "retried": sum(row.attempts > 1 for row in rows),
        "unjudged": sum(row.unjudged for row in valid),
    }
    return {**counts, **values}


def over_seeds(rows_by_seed: Sequence[Sequence[Row]], max_calls: int) -> Measures:
    """The mean of the seeds' values; counts are summed."""
    seeds = [measure(rows, max_calls) for rows in rows_by_seed]
    found: Measures = {}
    for name in (*COUNTS, *ratios(max_calls), *QUANTILES):
        defined = [value for seed in seeds if (value := seed[name]) is not None]
        found[name] = sum(defined) if name in COUNTS else (fmean(defined) if defined else None)
    return found


def sums(rows: Iterable[Row], max_calls: int) -> tuple[Table, Table]:
    """(parts, wholes), each [questions, measures]: of all samples of a question together, in an order of ids."""
    wanted = ratios(max_calls).values()
    samples: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.counts:
            samples[row.question_id].append(row)
    shape = (2, len(samples), len(wanted))
    table = np.zeros(shape)
    for i, id in enumerate(sorted(samples)):
        for row in sorted(samples[id], key=lambda row: row.sample_index):
            table[0, i] += [ratio.part(row) for ratio in wanted]
            table[1, i] += [ratio.whole(row) for ratio in wanted]
    return table[0], table[1]


def grouped(rows_by_seed: Sequence[Sequence[Row]], keys: Callable[[Row], Iterable[str]]) -> GroupedRows:
    """Rows by each of their keys, then by seed; groups sorted by name. A seed may have no rows of a group."""
    groups: defaultdict[str, list[list[Row]]] = defaultdict(lambda: [[] for _ in rows_by_seed])
    for seed, rows in enumerate(rows_by_seed):
        for row in rows:
            for key in keys(row):
                groups[key][seed].append(row)
    return {name: groups[name] for name in sorted(groups)}


# How rows are broken down: the document's key, and a row's groups.
BREAKDOWNS: Mapping[str, Callable[[Row], Iterable[str]]] = {
    "kinds": lambda row: [row.kind],
    "labels": lambda row: [row.label],
    "tags": lambda row: row.tags,
}


def confusion(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Right first steps ("crop or image_search") to chosen ones, in questions; where the right ones are known."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.counts and row.first_tools:
            table[" or ".join(row.first_tools)][row.first_tool] += 1
    return {right: dict(sorted(table[right].items())) for right in sorted(table)}


def behaviour(rows: Iterable[Row]) -> dict[str, float]:
    """Shares of episodes, right or wrong, with or without a search (MMSearch-R1, figure 4b). They sum to 1."""
    found: Counter[str] = Counter()
    for row in rows:
        if row.counts:
            right = "right" if row.exact_match else "wrong"
            found[f"{right}_{'searched' if row.searches else 'unsearched'}"] += 1
    names = ("right_unsearched", "right_searched", "wrong_unsearched", "wrong_searched")
    return {name: found[name] / max(1, found.total()) for name in names}
