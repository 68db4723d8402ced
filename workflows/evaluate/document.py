"""What an evaluation leaves in results.json, arm by arm: plain values, from rows alone. Pure.

arms.<name>
  overall, intervals                       every measure of workflows/evaluate/metrics.py, and its 95 % interval;
  kinds, kind_intervals                    an undefined measure is null, and has no interval
  labels, label_intervals
  tags, tag_intervals
  confusion                                right first steps -> chosen one -> questions
  behaviour                                shares: right or wrong, with or without a search
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflows.evaluate.bootstrap import intervals
from workflows.evaluate.metrics import BREAKDOWNS, behaviour, confusion, grouped, over_seeds
from workflows.evaluate.rows import Row

RESULTS = "results.json"


def arm_document(rows_by_seed: Sequence[Sequence[Row]], max_calls: int) -> dict[str, Any]:
    """The numbers of one arm, over one seed or several. `max_calls`: tool calls that the protocol allows."""
    everything = [row for rows in rows_by_seed for row in rows]
    document: dict[str, Any] = {
        "overall": over_seeds(rows_by_seed, max_calls),
        "intervals": intervals(rows_by_seed, max_calls),
        "confusion": confusion(everything),
        "behaviour": behaviour(everything),
    }
    for name, keys in BREAKDOWNS.items():
        groups = grouped(rows_by_seed, keys)
        document[name] = {group: over_seeds(rows, max_calls) for group, rows in groups.items()}
        document[f"{name.removesuffix('s')}_intervals"] = {
            group: intervals(rows, max_calls) for group, rows in groups.items()
        }
    return document
