"""What an evaluation leaves: tables for the terminal and one JSON document. Pure, but for writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from workflows.evaluate.arms import ARMS
from workflows.evaluate.metrics import Measures, by, measure
from workflows.evaluate.rows import Row

RESULTS = "results.json"
# Heading of a column, field of Measures, form; what is no share is a mean per question. Fits 80 characters.
COLUMNS = (
    ("exact match", "exact_match", ".1%"),
    ("F1", "f1", ".1%"),
    ("sear- ched", "search_ratio", ".1%"),
    ("image calls", "image_searches", ".2f"),
    ("text calls", "text_searches", ".2f"),
    ("of it crops", "crop_share", ".0%"),
    ("found sth.", "search_success", ".1%"),
    ("valid format", "format_valid", ".1%"),
    ("tok- ens", "sampled_tokens", ".0f"),
    ("sec- onds", "seconds", ".2f"),
)
LABELS = (("free", "all search-free"), ("required", "all search-required"))


def arm_document(rows: Sequence[Row], max_calls: int) -> dict[str, Any]:
    """The numbers of one arm: overall, by kind of question, by label."""
    return {
        "overall": asdict(measure(rows, max_calls)),
        "kinds": {kind: asdict(m) for kind, m in by(rows, lambda row: row.kind, max_calls).items()},
        "labels": {label: asdict(m) for label, m in by(rows, lambda row: row.label, max_calls).items()},
    }


def overall_table(arms: Mapping[str, Sequence[Row]], max_calls: int) -> Table:
    """A line per arm; episodes that the infrastructure failed are in a column of their own, if there are any."""
    measured = {name: measure(rows, max_calls) for name, rows in arms.items()}
    failures = any(m.failed for m in measured.values())
    n = max((m.episodes + m.failed for m in measured.values()), default=0)
    table = _table(f"{n} held-out episodes per arm")
    table.add_column("arm")
    for heading in (*(heading for heading, _, _ in COLUMNS), *(["failed"] if failures else [])):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for name, m in measured.items():
        numbers = (_shown(getattr(m, field), form) for _, field, form in COLUMNS)
        table.add_row(name, *numbers, *([str(m.failed)] if failures else []))
    return table


def kinds_table(arms: Mapping[str, Sequence[Row]], max_calls: int) -> Table:
    """A line per kind of question: what share is right, and in what share was searched."""
    table = _table("exact match by kind of question, and [dim]in what share of them was searched[/]")
    table.add_column("kind")
    table.add_column("questions", justify="right")
    for name in arms:
        table.add_column(name, justify="right")
    kinds = {name: by(rows, lambda row: row.kind, max_calls) for name, rows in arms.items()}
    labels = {name: by(rows, lambda row: row.label, max_calls) for name, rows in arms.items()}
    for kind in sorted({kind for found in kinds.values() for kind in found}):
        _kind_row(table, kind, [found.get(kind) for found in kinds.values()])
    table.add_section()
    for label, says in LABELS:
        if any(label in found for found in labels.values()):
            _kind_row(table, says, [found.get(label) for found in labels.values()])
    return table


def legend(arms: Sequence[str]) -> str:
    """What the arms are, in words."""
    return "\n".join(f"  {name}: {ARMS[name].says}" for name in arms)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _kind_row(table: Table, name: str, cells: Sequence[Measures | None]) -> None:
    n = max((m.episodes + m.failed for m in cells if m), default=0)
    shown = (f"{_shown(m.exact_match, '.1%')} [dim]{_shown(m.search_ratio, '.0%')}[/]" if m else "-" for m in cells)
    table.add_row(name, str(n), *shown)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
