"""An evaluation's tables for the terminal, from the documents of workflows/evaluate/document.py. Pure.

They fit 80 characters. Every score stands beside the share of searches that found something: a score without it says
as much about the search engines as about the model (papers.md 6.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Documents = Mapping[str, Mapping[str, Any]]  # by arm

# Heading of a column, measure, form; what is no share is a mean per question.
COLUMNS = (
    ("found sth.", "search_success", ".0%"),
    ("sear- ched", "search_ratio", ".0%"),
    ("image calls", "image_searches", ".2f"),
    ("text calls", "text_searches", ".2f"),
    ("of it crops", "crop_share", ".0%"),
    ("valid form", "format_valid", ".0%"),
    ("tok- ens", "sampled_tokens", ".0f"),
    ("sec- onds", "seconds", ".1f"),
)
CHOICES = (
    ("first tool right", "first_tool_right"),
    ("if to search", "first_tool_right_required"),
    ("evidence hit", "evidence_hit"),
    ("recovery", "recovery"),
    ("cites", "cites"),
    ("cited supports", "cited_support"),
)
LABELS = (("free", "all free"), ("required", "all required"))
ARMS_ABREAST = 4  # in the table of kinds


def show(arms: Documents) -> None:
    """All tables, on standard output."""
    out = Console()
    for table in (overall_table(arms), choices_table(arms), *kinds_tables(arms)):
        out.print(table)
    out.print(legend(arms), highlight=False)


def overall_table(arms: Documents) -> Table:
    """A line per arm; episodes that the infrastructure failed are in a column of their own, if there are any."""
    overall = {name: arm["overall"] for name, arm in arms.items()}
    failures = any(m["failed"] for m in overall.values())
    n = max((_asked(m) for m in overall.values()), default=0)
    table = _table(f"{n} held-out episodes per arm, [dim]95 % intervals in brackets[/]")
    table.add_column("arm", no_wrap=True)
    table.add_column("exact\nmatch %", justify="right", no_wrap=True)
    for heading in (*(heading for heading, _, _ in COLUMNS), *(["failed"] if failures else [])):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for name, m in overall.items():
        right = _with_interval(m["exact_match"], arms[name]["intervals"].get("exact_match"))
        numbers = (_shown(m[measure], form) for _, measure, form in COLUMNS)
        table.add_row(name, right, *numbers, *([str(m["failed"])] if failures else []))
    return table


def choices_table(arms: Documents) -> Table:
    """Other views of the answers (a judge's where there is one), the choice of tools, the use of what they returned."""
    judged = any(arm["overall"]["judged"] is not None for arm in arms.values())
    columns = (("F1", "f1"), *([("judged right", "judged")] if judged else []), *CHOICES)
    unknown = any(arm["overall"]["unjudged"] for arm in arms.values())
    table = _table("answers, tools and evidence in %, [dim]± half a 95 % interval[/]")
    table.add_column("arm", no_wrap=True)
    for heading in (*(heading for heading, _ in columns), *(["judge unsure"] if unknown else [])):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for name, arm in arms.items():
        cells = [_plus_minus(arm["overall"][measure], arm["intervals"].get(measure)) for _, measure in columns]
        table.add_row(name, *cells, *([str(arm["overall"]["unjudged"])] if unknown else []))
    return table


def kinds_tables(arms: Documents) -> list[Table]:
    """A line per kind of question, label and tag: what share is right, and in what share was searched.

    As many tables as there are fours of arms.
    """
    names = list(arms)
    parts = [names[i : i + ARMS_ABREAST] for i in range(0, len(names), ARMS_ABREAST)]
    return [_kinds_table({name: arms[name] for name in part}) for part in parts]


def _kinds_table(arms: Documents) -> Table:
    table = _table("exact match % by kind of question, [dim]and in what share was searched[/]")
    table.add_column("kind", no_wrap=True)
    table.add_column("n", justify="right")
    for name in arms:
        table.add_column(name, justify="right")
    for group in _groups(arms, "kinds"):
        _kind_row(table, group, group, arms, "kind")
    table.add_section()
    for group, says in LABELS:
        if group in _groups(arms, "labels"):
            _kind_row(table, group, says, arms, "label")
    table.add_section()
    for group in _groups(arms, "tags"):
        _kind_row(table, group, group, arms, "tag")
    return table


def legend(arms: Documents) -> str:
    """What the arms are, in words."""
    return "\n".join(f"  {name}: {arm['says']}" for name, arm in arms.items())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0, pad_edge=True)


def _groups(arms: Documents, breakdown: str) -> list[str]:
    return sorted({group for arm in arms.values() for group in arm[breakdown]})


def _kind_row(table: Table, group: str, says: str, arms: Documents, breakdown: str) -> None:
    measured = [arm[f"{breakdown}s"].get(group) for arm in arms.values()]
    bounds = [arm[f"{breakdown}_intervals"].get(group, {}).get("exact_match") for arm in arms.values()]
    shown = (
        f"{_plus_minus(m['exact_match'], interval)} [dim]{_shown(m['search_ratio'], '.0%')}[/]" if m else "-"
        for m, interval in zip(measured, bounds, strict=True)
    )
    table.add_row(says, str(max((_asked(m) for m in measured if m), default=0)), *shown)


def _asked(measures: Mapping[str, Any]) -> int:
    return int(measures["episodes"] + measures["failed"])


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _with_interval(share: float | None, interval: Sequence[float] | None) -> str:
    """`81.4 (78-85)`, in per cent."""
    if share is None:
        return "-"
    return f"{share:.1%}".rstrip("%") + (f" ({interval[0] * 100:.0f}-{interval[1] * 100:.0f})" if interval else "")


def _plus_minus(share: float | None, interval: Sequence[float] | None) -> str:
    """`81 ±4`, in per cent."""
    if share is None:
        return "-"
    return f"{share * 100:.0f}" + (f" ±{(interval[1] - interval[0]) * 50:.0f}" if interval else "")
