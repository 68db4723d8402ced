"""`mmsearch dataset inspect`: what a dataset holds, in tables, and a few conversations to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.dataset.build import COUNTED, REPORT
from workflows.dataset.checks import counted
from workflows.dataset.conversations import shards_of
from workflows.run_folder import RunFolder

if TYPE_CHECKING:
    from workflows.settings import Settings

SAMPLES = 4  # conversations shown
SHOWN_REASONS = 5


def run(settings: Settings, console: Console | None = None) -> None:
    """The command. Raise `UserError` where there is no dataset."""
    console = console or Console()
    folder = RunFolder(settings.run.folder).dataset
    report = report_of(folder)
    console.print(f"dataset: {folder}", markup=False, highlight=False)
    console.print(sizes(report))
    for column in COUNTED:
        console.print(by_value(report, column))
    _tell_dropped(report, console)
    if report.get("sft", {}).get("rows"):
        shards_of(folder / "sft")
        rows = list(read(folder / "sft", ["searches", "kind", "designed_label"]))
        console.print(searches(rows))
        for row in samples(folder / "sft"):
            console.print(rendered(row))


def report_of(folder: Folder) -> Mapping[str, Any]:
    """What the dataset's maker told of each part. Raise `UserError` where there is none, or none to be read."""
    try:
        report = folder.read_json(REPORT)
        if all({"rows", "spare", "dropped", "listed", "counts", "seconds"} <= part.keys() for part in report.values()):
            return report
    except FileNotFoundError as error:
        raise UserError(f"There is no dataset at {folder}: build it first (`mmsearch dataset build`).") from error
    except (ValueError, AttributeError):  # torn, or of another form
        pass
    raise UserError(f"{folder}/{REPORT} cannot be read: build the dataset again (`mmsearch dataset build`).")


def read(folder: Folder, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of all shards, these columns only. Raise `UserError` for a shard that is damaged."""
    for name in folder.files():
        if name.endswith(".parquet"):
            try:
                with folder.open(name) as stream:
                    table = pq.read_table(stream, columns=list(columns))
            except pa.ArrowException as error:
                raise UserError(
                    f"{folder}/{name} cannot be read: it is damaged or lacks a column of {', '.join(columns)};"
                    f" delete {folder} and build it again (`mmsearch dataset build`)."
                ) from error
            yield from table.to_pylist()


def sizes(report: Mapping[str, Any]) -> Table:
    table = Table("part", "rows", "spare", "dropped", "seconds", title="parts")
    for name, part in report.items():
        dropped = ", ".join(f"{n} {cause}" for cause, n in part["dropped"].items()) or "none"
        table.add_row(name, str(part["rows"]), str(part["spare"]), dropped, f"{part['seconds']:.0f}")
    return table


def by_value(report: Mapping[str, Any], column: str) -> Table:
    """How often each value of a column occurs, in each part."""
    values = sorted({value for part in report.values() for value in part["counts"].get(column, {})})
    table = Table(column, *report, title=f"by {column.replace('_', ' ')}")
    for value in values:
        counts = [part["counts"].get(column, {}).get(value, 0) for part in report.values()]
        table.add_row(value or "(none)", *map(str, counts))
    return table


def searches(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Conversations by their number of searches, for each kind."""
    most = max(row["searches"] for row in rows)
    table = Table("kind", *map(str, range(most + 1)), title="searches in a conversation")
    for kind in counted(rows, "kind"):
        numbers = counted([row for row in rows if row["kind"] == kind], "searches")
        table.add_row(kind, *(str(numbers.get(str(n), 0)) for n in range(most + 1)))
    return table


def samples(folder: Folder) -> list[dict[str, Any]]:
    """One conversation of each of the first few kinds that occur."""
    found: dict[str, dict[str, Any]] = {}
    for row in read(folder, ["data_id", "kind", "designed_label", "segments", "reward_model"]):
        found.setdefault(row["kind"], row)
        if len(found) == SAMPLES:
            break
    return list(found.values())


def rendered(row: Mapping[str, Any]) -> Text:
    """A conversation as text; retrieved words are the world's and never markup."""
    text = Text(f"\n{row['data_id']}  {row['kind']}, {row['designed_label']}\n", style="bold")
    for segment in row["segments"]:
        trained = segment["kind"] == "action"
        text.append(f"{segment['kind']:>12} ", style="dim")
        text.append(segment["text"].strip().replace("\n", "\n" + " " * 13) + "\n", style="green" if trained else "")
    return text.append(f"{'right':>12} {row['reward_model']['ground_truth']}\n", style="dim")


def _tell_dropped(report: Mapping[str, Any], console: Console) -> None:
    for name, part in report.items():
        for line in part["listed"][:SHOWN_REASONS]:
            console.print(f"dropped from {name}: {line}", markup=False, highlight=False)
