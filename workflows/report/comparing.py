"""Several runs side by side: which settings differ, and the numbers over seeds where nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from workflows.report.sources import RunFacts, number

# Where a run lives and what the machine was asked for: differences that say nothing about the result.
PLACES = ("run.name", "run.storage", "cluster.", "demo.")
ABSENT = "–"


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same everywhere, and its value in each run."""

    key: str
    values: tuple[str, ...]


def differences(runs: Sequence[RunFacts]) -> list[Difference]:
    """Of the settings that runs told; a run that tells none is not compared."""
    keys = sorted({key for run in runs for key in run.settings if not _elsewhere(key, runs)})
    found = []
    for key in keys:
        values = tuple(_shown(run.settings[key]) if key in run.settings else ABSENT for run in runs)
        told = {value for run, value in zip(runs, values, strict=True) if run.settings}
        if len(told) > 1:
            found.append(Difference(key, values))
    return found


def seeds_alone(runs: Sequence[RunFacts]) -> bool:
    """Whether these are repetitions: more than one, each tells its settings, and they differ in seeds and no more."""
    if len(runs) < 2 or not all(run.settings for run in runs):
        return False
    changed = differences(runs)
    return bool(changed) and all(d.key.rpartition(".")[2] == "seed" for d in changed)


def over_seeds(runs: Sequence[RunFacts]) -> dict[str, dict[str, Any]]:
    """The arms that all runs have, as one document each, as the evaluation itself makes it of several seeds.

    Empty where the rows of a run are of another form: then its numbers cannot be pooled.
    """
    from workflows.evaluate.document import arm_document
    from workflows.evaluate.rows import read_rows

    common = [arm for arm in runs[0].arms if all(arm in run.arms for run in runs)]
    allowed = int(number(runs[0].results.get("max_calls")) or 0)
    found: dict[str, dict[str, Any]] = {}
    try:
        for arm in common:
            rows = [read_rows(run.folder / "evaluate", f"{arm}.parquet") for run in runs]
            found[arm] = {"says": runs[0].arms[arm].get("says", ""), **arm_document(rows, allowed)}
    except (FileNotFoundError, TypeError, KeyError, pa.ArrowException):
        return {}
    return found


def _elsewhere(key: str, runs: Sequence[RunFacts]) -> bool:
    """Whether a key says where something is: by its name, or because all its values are addresses."""
    values = [run.settings[key] for run in runs if key in run.settings]
    return key.startswith(PLACES) or all(isinstance(v, str) and v.startswith(("/", "s3://")) for v in values)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
