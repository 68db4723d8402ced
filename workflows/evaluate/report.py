"""What an evaluation leaves: tables for the terminal and one JSON document. Pure, but for writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from workflows.evaluate.arms import ARMS
from workflows.evaluate.metrics import Measures, by, measure
from workflows.evaluate.rows import Row

RESULTS = "results.json"
COLUMNS = (
    ("exact match", "exact_match", ".1%"),
    ("F1", "f1", ".1%"),
    ("searched", "search_ratio", ".1%"),
    ("of allowed", "search_ratio_allowed", ".1%"),
    ("image", "image_searches", ".2f"),
    ("text", "text_searches", ".2f"),
    ("crops", "crop_share", ".0%"),
    ("found sth.", "search_success", ".1%"),
    ("format", "format_valid", ".1%"),
    ("tokens", "sampled_tokens", ".0f"),
    ("turns", "turns", ".2f"),
    ("seconds", "seconds", ".2f"),
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
    """A line per arm."""
    table = Table(title="held-out questions", title_justify="left")
    table.add_column("arm")
    table.add_column("episodes", justify="right")
    for name, _, _ in COLUMNS:
        table.add_column(name, justify="right")
    table.add_column("failed", justify="right")
    for name, rows in arms.items():
        m = measure(rows, max_calls)
        numbers = (_shown(getattr(m, field), form) for _, field, form in COLUMNS)
        table.add_row(name, str(m.episodes), *numbers, str(m.failed))
    return table


def kinds_table(arms: Mapping[str, Sequence[Row]], max_calls: int) -> Table:
    """A line per kind of question: what share is right, and in what share was searched."""
    table = Table(title="exact match, and the share of questions searched for, by kind", title_justify="left")
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


def _kind_row(table: Table, name: str, cells: Sequence[Measures | None]) -> None:
    n = max((m.episodes + m.failed for m in cells if m), default=0)
    shown = (f"{_shown(m.exact_match, '.1%')} [dim]{_shown(m.search_ratio, '.0%')}[/]" if m else "-" for m in cells)
    table.add_row(name, str(n), *shown)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
