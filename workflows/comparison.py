"""What a demo over seeds or with ablations ends with: arms over all seeds, and the targets held against them.

<first run>/comparison.json   arms as in evaluate/results.json, over seeds; and every target with its values by seed
            comparison.html   the report of all of them (workflows/report)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.storage import Folder
from workflows.evaluate import tables
from workflows.evaluate.document import arm_document
from workflows.evaluate.rows import Row, read_rows
from workflows.report.run import write_report
from workflows.targets import Finding, findings
from workflows.variants import ABLATIONS

FILE = "comparison.json"
REPORT = "comparison.html"


def compare(runs: Sequence[Any], ablations: Sequence[str], console: Console) -> None:
    """`runs` are the settings of runs that are complete; they differ in seeds alone. `ablations`: by their names."""
    folders: list[Folder] = [settings.run.folder for settings in runs]
    results = [folder.read_json("evaluate/results.json") for folder in folders]
    max_calls = int(results[0]["max_calls"])
    arms = [arm for arm in results[0]["arms"] if all(arm in result["arms"] for result in results)]
    seeds = [rows_of(folder, arms, ablations) for folder in folders]
    says = {name: arm["says"] for name, arm in results[0]["arms"].items()} | {it.name: it.says for it in ABLATIONS}
    documents = {arm: {"says": says[arm]} | arm_document([rows[arm] for rows in seeds], max_calls) for arm in seeds[0]}
    told = findings(seeds, max_calls)
    tables.show(documents)
    Console().print(targets_table(told))
    written = {
        "runs": [str(folder) for folder in folders],
        "seeds": [settings.run.seed for settings in runs],
        "arms": documents,
        "targets": [
            {"says": it.target.says, "bound": it.target.bound, "at_most": it.target.at_most, "values": it.values,
             "mean": it.mean, "reached": it.reached}
            for it in told
        ],
    }  # fmt: skip
    folders[0].write_json(FILE, written)
    page = write_report(folders, f"{folders[0]}/{REPORT}") if len(folders) > 1 else None
    console.print(f"the numbers are in {folders[0] / FILE}", highlight=False)
    if page:
        console.print(f"the runs side by side: {page.address}", highlight=False)


def rows_of(folder: Folder, arms: Sequence[str], ablations: Sequence[str]) -> dict[str, list[Row]]:
    """By arm; ablations are arms under their own names."""
    found = {arm: read_rows(folder / "evaluate", f"{arm}.parquet") for arm in arms}
    made = [it for it in ABLATIONS if it.name in ablations]
    return found | {it.name: read_rows(folder / f"{it.folder}/evaluate", "rl.parquet") for it in made}


def targets_table(told: Sequence[Finding]) -> Table:
    """A line per target: what was to be reached, what was, and the range over seeds."""
    seeds = max((len(it.values) for it in told), default=1)
    title = f"what was to be reached, mean of {seeds} seeds" if seeds > 1 else "what was to be reached"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for heading in ("target", "reached", *(["over seeds"] if seeds > 1 else []), ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for it in told:
        form = it.target.form
        bound = f"{'at most' if it.target.at_most else 'at least'} {it.target.bound:{form}}"
        spread = [f"{min(it.values):{form}} to {max(it.values):{form}}"] if seeds > 1 else []
        verdict = "[green]yes[/]" if it.reached else "[yellow]no[/]"
        table.add_row(it.target.says, bound, f"{it.mean:{form}}", *spread, verdict)
    return table
