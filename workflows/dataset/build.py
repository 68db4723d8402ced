"""`mmsearch dataset build`: a Ray Data pipeline from a source to Parquet shards.

    units of the source -> pool of actors (draw, play, check) -> balance -> dataset/{questions/train,questions/test,sft}

A part is written whole or again: `report.json` names those that are, with their counts and what was dropped and why.
A second start with the same configuration makes only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster import runtime
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.dataset import pipeline
from workflows.dataset.checks import balanced, counted
from workflows.dataset.source import Part, source_of
from workflows.dataset.worker import Plan
from workflows.embedded.web import ensure_web
from workflows.identity import changes
from workflows.run_folder import RunFolder

if TYPE_CHECKING:
    from workflows.settings import Settings

REPORT = "report.json"
LISTED = 20  # dropped rows told one by one; all are counted
COUNTED = ("kind", "designed_label", "category")


def run(settings: Settings, console: Console | None = None) -> None:
    """The stage, as the command line and the demo call it. Raise `UserError`."""
    console = console or Console(stderr=True)
    folder = RunFolder(settings.run.folder)
    folder.root.ensure_writable()
    if settings.dataset.source.startswith("workflows.embedded."):
        ensure_web(folder.world, settings.world)
    source_of(settings)  # a wrong path is found before anything is started
    report = _report(folder.dataset)
    due = [part for part in parts_of(settings) if not _done(report, part, settings, folder)]
    if not due:
        console.print(f"dataset: all parts of this configuration are there already: {folder.dataset}")
        return
    with runtime.connect(settings.cluster) as cluster:
        needed = settings.dataset.actors * settings.dataset.actor_cpus
        cluster.require({"CPU": needed}, "the dataset")
        for part in due:
            left = report.get(part.name, {}).get("identity")
            what = changes(left, identity_of(settings, part, folder)) if left else ""
            if what:
                console.print(f"dataset: {part.name} is made anew, because {what}")
            report[part.name] = _build(settings, part, folder, report, console)
            folder.dataset.write_json(REPORT, report)


def parts_of(settings: Settings) -> list[Part]:
    """Those that the settings ask for."""
    wanted = settings.dataset
    played = math.ceil(wanted.conversations * wanted.surplus)
    parts = [
        Part("questions/train", "train", wanted.train_questions, wanted.train_questions, taught=False),
        Part("questions/test", "test", wanted.test_questions, wanted.test_questions, taught=False),
        Part("sft", "train", wanted.conversations, played, taught=True),
    ]
    return [part for part in parts if part.rows]


def identity_of(settings: Settings, part: Part, folder: RunFolder) -> dict[str, Any]:
    """What a part follows from, as JSON gives it back."""
    wanted = settings.dataset
    identity: dict[str, Any] = {
        "part": dataclasses.asdict(part),
        "source": [wanted.source, wanted.kwargs],
        "embed_images": wanted.embed_images,
        "shards": wanted.shards,
        "world": dataclasses.asdict(settings.world),
        "mix": dataclasses.asdict(settings.mix),
        "seed": settings.run.seed,
    }
    if part.taught:
        identity["style"] = dataclasses.asdict(wanted.style)
        identity["agent"] = dataclasses.asdict(settings.agent)
        identity["tokenizer"] = tokenizer_of(folder.base)
        identity |= {"pictures": settings.pictures.given} if settings.pictures.given else {}
    return json.loads(json.dumps(identity))


def tokenizer_of(base: Folder) -> str:
    """Fingerprint of a model's tokenizer. Raise `UserError` where there is no base model yet."""
    try:
        return hashlib.sha256(base.read_bytes("tokenizer.json")).hexdigest()[:16]
    except FileNotFoundError as error:
        raise UserError(f"There is no base model at {base}: make it first (`mmsearch pretrain`).") from error


def _report(folder: Folder) -> dict[str, Any]:
    try:
        report = folder.read_json(REPORT)
    except (FileNotFoundError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _done(report: Mapping[str, Any], part: Part, settings: Settings, folder: RunFolder) -> bool:
    """Whether a part was made from these settings, and is still there."""
    told = report.get(part.name, {})
    there = not told.get("rows") or any(name.endswith(".parquet") for name in (folder.dataset / part.name).list())
    return there and told.get("identity") == identity_of(settings, part, folder)


def _build(
    settings: Settings, part: Part, folder: RunFolder, report: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Make one part anew and return its report. What is there stays until its rows are known."""
    began = time.time()
    told = f"{part.rows} conversations of the teacher" if part.taught else f"{part.rows} {part.split} questions"
    console.print(f"dataset: {told}")
    identity = identity_of(settings, part, folder)
    target = folder.dataset / part.name
    model = folder.base.address if part.taught else ""
    units = source_of(settings).units(part)
    rows: list[dict[str, Any]] = []
    chosen: list[str] = []
    if not isinstance(units, list) or units:
        played = pipeline.play(units, Plan(settings, part, folder.root.address, model))
        rows = pipeline.summaries(played)
        chosen = choose(rows, part)
        others = {name: told for name, told in report.items() if name != part.name}
        folder.dataset.write_json(REPORT, others)  # half a part must not pass for the one that was there
        target.delete()
        if chosen:
            pipeline.write(played, chosen, target, settings.dataset.shards)
    else:
        target.delete()
    made = {"identity": identity, "seconds": round(time.time() - began, 1), **reported(rows, chosen)}
    _tell(made, part, console)
    return made


def choose(rows: list[dict[str, Any]], part: Part) -> list[str]:
    """Keys of the rows to be written. A `data_id` that comes again is dropped, and said so in `rows`."""
    seen: set[str] = set()
    for row in rows:
        if not row["dropped"] and row["data_id"] in seen:
            row["dropped"], row["detail"] = "duplicate", f"data_id {row['data_id']!r} occurs twice"
        elif not row["dropped"]:
            seen.add(row["data_id"])
    labels = {row["key"]: row["designed_label"] for row in rows if not row["dropped"]}
    return balanced(labels, part.rows) if part.taught else list(labels)[: part.rows]


def reported(rows: list[dict[str, Any]], chosen: list[str]) -> dict[str, Any]:
    """What became of everything: written and spare rows, and each cause of dropping with examples."""
    keys = set(chosen)
    written = [row for row in rows if row["key"] in keys]
    dropped = [row for row in rows if row["dropped"]]
    return {
        "rows": len(written),
        "spare": len(rows) - len(written) - len(dropped),
        "dropped": counted(dropped, "dropped"),
        "listed": [f"{row['data_id']}: {row['dropped']}: {row['detail']}" for row in dropped[:LISTED]],
        "counts": {column: counted(written, column) for column in COUNTED},
    }


def _tell(report: Mapping[str, Any], part: Part, console: Console) -> None:
    causes = ", ".join(f"{n} {cause}" for cause, n in report["dropped"].items())
    dropped = f"; dropped: {causes}" if causes else ""
    console.print(f"dataset: {part.name} has {report['rows']} rows ({report['seconds']:.0f} s){dropped}", markup=False)
    if report["rows"] < part.rows:
        short = f"{part.rows} were asked for, and {report['spare']} are left over for want of a counterpart"
        console.print(f"[yellow]dataset: {short}; {REPORT} says what was dropped[/]")
