"""results.json -> tables of words. Pure; what a run does not tell leaves its column out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.report.sources import number

NOTHING = "–"
CALLS = ("searches", "text_searches", "image_searches")
LABELS = {"free": "search-free", "required": "search-required", "unknown": "unlabelled"}
FIRST = {"": "none", "none": "none", "text_search": "text", "image_search": "whole image", "crop": "crop"}
STEPS = tuple(dict.fromkeys(FIRST.values()))


@dataclass(frozen=True)
class Part:
    """Measures of some episodes, with their intervals; `labels` are those of the whole that they are part of."""

    values: Mapping[str, Any]
    intervals: Mapping[str, Any]
    labels: Mapping[str, Any]
    label_intervals: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """`text` is the number, `low_high` its interval in words or nothing; `best` among those above and below it."""

    text: str
    low_high: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A measure by the names that runs give it, and how it is written."""

    heading: str
    says: str  # what it is, for those who ask
    fields: tuple[str, ...]  # its name in results.json; further ones are added up where the first is not there
    form: Callable[[float], str]
    label: str = ""  # of these questions alone
    best: str = ""  # max | min: which value is marked


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def two(value: float) -> str:
    return f"{value:.2f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def dollars(value: float) -> str:
    return f"{value:.4f}" if 0 < value < 0.1 else f"{value:.2f}"


def per_thousand(value: float) -> str:
    return dollars(1000 * value)


COLUMNS = (
    Column("questions", "episodes that count; those that the infrastructure spoilt do not", ("episodes",), whole),
    Column("exact match", "the answer is one of the right ones", ("exact_match",), percent, best="max"),
    Column("F1", "of the answer's words", ("f1",), percent),
    Column("judged", "held right by the judge", ("judged",), percent, best="max"),
    Column(
        "searched: free", "of the questions that need no search, how many are searched for", ("search_ratio",),
        percent, "free",
    ),
    Column(
        "searched: required", "of the questions that need one, how many are searched for", ("search_ratio",),
        percent, "required",
    ),
    Column("calls", "searches per question", CALLS, two),
    Column("crops", "image searches of a part of the picture, among all of them", ("crop_share",), percent),
    Column("found", "searches that found something", ("search_success",), percent),
    Column(
        "right tool first", "the first tool is one that a right path begins with",
        ("first_tool_right",), percent, best="max",
    ),
    Column(
        "recovery", "right in the end, of those whose first search returned no right evidence",
        ("recovery",), percent, best="max",
    ),
    Column(
        "evidence hit", "searched questions whose right answer stands in what was found",
        ("evidence_hit",), percent, best="max",
    ),
    Column(
        "cited support", "answers whose cited evidence says what they say", ("cited_support",), percent, best="max",
    ),
    Column("valid format", "every turn well-formed, and an answer at the end", ("format_valid",), percent),
    Column("tokens", "sampled by the model, per question", ("sampled_tokens",), whole),
    Column("seconds", "per question, waiting for the shared engine included", ("seconds",), two),
    Column("cost, $", "paid to providers, per 1,000 questions", ("cost_usd",), per_thousand),
    Column("per right answer, $", "paid to providers", ("cost_usd_per_correct",), dollars),
    Column("failed", "episodes that the infrastructure spoilt after all retries", ("failed",), whole),
)  # fmt: skip
NEVER_ALONE = ("cost, $", "per right answer, $", "failed")  # columns that are left out where they are zero everywhere


def whole_arm(document: Mapping[str, Any]) -> Part:
    return Part(
        _map(document, "overall"), _map(document, "intervals"),
        _map(document, "labels"), _map(document, "label_intervals"),
    )  # fmt: skip


def parts_of(document: Mapping[str, Any], key: str) -> dict[str, Part]:
    """An arm's parts by `key`: kinds, labels or tags."""
    bounds = _map(document, f"{key.removesuffix('s')}_intervals")
    return {name: Part(_map(_map(document, key), name), _map(bounds, name), {}, {}) for name in _map(document, key)}


def cells(parts: Sequence[Part], *, mark_best: bool = True) -> tuple[list[Column], list[list[Cell]]]:
    """The columns that some part can fill, and a row of cells for each part."""
    columns = [c for c in COLUMNS if any(_value(c, part) is not None for part in parts)]
    columns = [c for c in columns if c.heading not in NEVER_ALONE or any(_value(c, part) for part in parts)]
    by_column = [_column(c, parts, mark_best) for c in columns]
    return columns, [[column[i] for column in by_column] for i in range(len(parts))]


def _column(column: Column, parts: Sequence[Part], mark_best: bool) -> list[Cell]:
    values = [_value(column, part) for part in parts]
    known = [column.form(value) for value in values if value is not None]
    best = ""
    if mark_best and column.best and len(set(known)) > 1:
        best = column.form((max if column.best == "max" else min)(v for v in values if v is not None))
    return [
        Cell(NOTHING) if v is None else Cell(column.form(v), _interval(column, part), column.form(v) == best)
        for v, part in zip(values, parts, strict=True)
    ]


def exact_match(part: Part) -> tuple[float | None, tuple[float, float] | None]:
    """The main measure and its interval, as shares."""
    return number(part.values.get("exact_match")), bounds_of(part.intervals, "exact_match")


def value_of(values: Mapping[str, Any], fields: Sequence[str]) -> float | None:
    """The first field's value, or else the sum of the others."""
    first = number(values.get(fields[0]))
    parts = [value for name in fields[1:] if (value := number(values.get(name))) is not None]
    return first if first is not None or not parts else sum(parts)


def calls(part: Part) -> float | None:
    """Searches per question; runs of an older form count them by tool alone."""
    return value_of(part.values, CALLS)


def matrix(arms: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[tuple[Cell, str]]]]:
    """(group, name, (exact match, searched in %) per arm) for every label, kind and tag that occurs."""
    rows = []
    for key, group in (("labels", "need"), ("kinds", "kind"), ("tags", "tag")):
        by_arm = [parts_of(document, key) for document in arms.values()]
        for name in sorted({name for parts in by_arm for name in parts}):
            row = []
            for parts in by_arm:
                value, bounds = exact_match(parts[name]) if name in parts else (None, None)
                searched = number(parts[name].values.get("search_ratio")) if name in parts else None
                cell = Cell(NOTHING) if value is None else Cell(percent(value), _range(bounds, percent))
                row.append((cell, "" if searched is None else percent(searched)))
            shown = LABELS.get(name, name) if key == "labels" else name.replace("_", " ")
            rows.append((group, shown, row))
    return rows


def confusion(document: Mapping[str, Any]) -> tuple[list[str], list[str], list[list[int]]] | None:
    """(right first steps, chosen ones, counts[right][chosen]) in the order of tools; None where nothing is told."""
    counts: dict[tuple[str, str], int] = {}
    for right, row in _map(document, "confusion").items():
        for chosen, n in row.items() if isinstance(row, Mapping) else ():
            key = (first_step(right), first_step(chosen))
            counts[key] = counts.get(key, 0) + int(number(n) or 0)
    if not any(counts.values()):
        return None
    rights = sorted({right for right, _ in counts}, key=_in_order)
    chosen = sorted({c for _, c in counts} | set(STEPS), key=_in_order)
    return rights, chosen, [[counts.get((right, c), 0) for c in chosen] for right in rights]


def bounds_of(intervals: Mapping[str, Any], measure: str) -> tuple[float, float] | None:
    found = intervals.get(measure)
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 2:
        return None
    low, high = number(found[0]), number(found[1])
    return None if low is None or high is None else (low, high)


def _value(column: Column, part: Part) -> float | None:
    return value_of(_map(part.labels, column.label) if column.label else part.values, column.fields)


def _interval(column: Column, part: Part) -> str:
    intervals = _map(part.label_intervals, column.label) if column.label else part.intervals
    return _range(bounds_of(intervals, column.fields[0]), column.form)


def _range(bounds: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    return "" if bounds is None else f"{form(bounds[0])}–{form(bounds[1])}"


def first_step(told: str) -> str:
    """In words; several right ones are told as "crop or image_search"."""
    return " or ".join(FIRST.get(name, name) for name in told.split(" or "))


def _in_order(name: str) -> tuple[int, str]:
    first = name.split(" or ")[0]
    return (STEPS.index(first) if first in STEPS else len(STEPS), name)


def _map(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}
