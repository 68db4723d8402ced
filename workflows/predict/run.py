"""`mmsearch predict`: the agent over all questions of a Parquet file or folder, with Ray Data, resumable by row.

    questions (source.py, columns.py) -> Ray Data (stream.py, worker.py) -> one episode a row (player.py)
        -> parts beside the output (parts.py) -> the output in the order of the questions (target.py, answers.py)

A run that was stopped or killed continues with the rows that are not in the parts. It is done when every row has an
answer, or a reason of its own why not; rows that the infrastructure spoilt are left to the next start (exit code 1).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.agent.trajectory import Failure
from actors.search.actor import check_providers
from cluster import runtime
from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from workflows.ask import model_folder
from workflows.evaluate.arms import WEIGHTS
from workflows.predict import source
from workflows.predict.parts import Parts
from workflows.predict.player import Ended
from workflows.predict.source import Source, Unit
from workflows.predict.target import Target
from workflows.predict.worker import Plan, weights_version
from workflows.progress import LINE_EVERY_S, interrupts_noted

if TYPE_CHECKING:
    from workflows.settings import Settings

FORMAT = 1  # of the answers: rows of another one are not continued
WAY_S = 60.0  # beyond what the episodes of a batch may take: reading, writing, Ray


def run(
    settings: Settings,
    questions: str,
    out: str,
    question_column: str | None = None,
    checkpoint: str | None = None,
    again: bool = False,
) -> None:
    """The command. Raise `UserError`, `RunBroken`, or KeyboardInterrupt when stopped."""
    console = Console(stderr=True)
    _check(settings)
    found, target = source.find(questions, question_column), Target.at(out)
    target.check(found)
    found.check_ids()
    if checkpoint is not None and checkpoint not in WEIGHTS:
        checkpoint = Folder(checkpoint).address  # workers have other working directories
    model = model_folder(settings.run.folder, checkpoint)
    version = weights_version(Folder(model))
    identity = identity_of(settings, found, version)
    if not target.begin(identity, again):
        console.print(f"predict: all {found.rows} rows are answered already: {target.address}", highlight=False)
        return
    done = Parts.in_folder(target.parts)
    says = f", {len(done.rows)} of them answered already" if len(done.rows) else ""
    console.print(f"predict: {found.rows} questions{says}, with the model at {model}", highlight=False, soft_wrap=True)
    units = list(found.units(set(done.rows.tolist())))
    if units:
        pictures = settings.predict.pictures_in or found.folder.address
        plan = Plan(
            settings, settings.run.folder.address, checkpoint, version, Folder(pictures).address, target.parts.address
        )
        _play(units, plan, found.rows, len(done.rows), console)
    _conclude(settings, target, identity, found.rows, console)


def identity_of(settings: Settings, found: Source, version: str) -> dict[str, Any]:
    """What the answers follow from, as JSON gives it back: only rows of the same belong together."""
    search = settings.search
    asked = [file.columns.question for file in found.files[:1]]
    identity = {
        "format": FORMAT,
        "questions": {"rows": found.rows, "fingerprint": found.fingerprint, "column": asked[0]},
        "pictures_in": settings.predict.pictures_in,
        "weights": version,
        "preset": settings.agent.protocol.name,
        "limits": dataclasses.asdict(settings.agent.limits),
        "temperature": settings.predict.temperature,
        "dtype": settings.engine.dtype,
        "images_per_prompt": settings.engine.images_per_prompt,
        "search": {
            "tools": [provider.name or provider.path for provider in search.endpoints()],
            "top_k": search.top_k,
        },
        "pictures": settings.pictures.given,
    }
    return json.loads(json.dumps(identity))


def _check(settings: Settings) -> None:
    """Raise `UserError` for parts of the configuration that do not fit each other, or cannot be found."""
    check_providers(settings.search)
    if settings.agent.limits.max_total_tokens > settings.engine.max_model_len:
        raise UserError(
            f"an episode may have {settings.agent.limits.max_total_tokens} tokens,"
            f" but the engine's max_model_len is {settings.engine.max_model_len}."
        )


def _play(units: Sequence[Unit], plan: Plan, rows: int, done: int, console: Console) -> None:
    """Every row of the units once. Raise `RunBroken` when some were spoilt, `UserError` when a tool refuses."""
    from workflows.predict import stream  # Ray Data, which costs seconds to import

    wanted, longest = plan.settings.predict, plan.settings.agent.limits.longest_s
    patience_s = wanted.ready_timeout_s + (wanted.retries + 1) * 2 * longest + WAY_S
    counts = Counts(rows, done)
    with interrupts_noted() as pressed, runtime.connect(plan.settings.cluster) as cluster:
        try:
            cluster.require(stream.resources(wanted), "predict")
            free = cluster.free.get("CPU", 0.0)
            with RowsProgress(counts, console) as progress:
                for ended in stream.played(units, plan, patience_s):
                    for row in ended:
                        counts.add(row)
                    progress.show()
            stream.wait_for_the_end(free)
        except Exception as error:
            if pressed:  # Ray's processes and the engine's get Ctrl-C too, and complain of it
                raise KeyboardInterrupt from error
            raise
    console.print(f"predict: {counts}", highlight=False, soft_wrap=True)
    if counts.ended[Ended.SPOILT]:
        raise RunBroken(
            f"{counts.ended[Ended.SPOILT]} rows could not be answered, the first: {counts.first_spoilt};"
            " the same command plays them again"
        )


class Counts:
    """How the rows of this start ended."""

    def __init__(self, rows: int, done: int) -> None:
        """`done`: rows that were answered before."""
        self.rows, self.done = rows, done
        self.ended: Counter[str] = Counter()
        self.data = 0  # rows that could not be asked
        self.first_data = self.first_spoilt = ""
        self.searches, self.cost_usd = 0, 0.0
        self.began = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of `ENDED`. Raise `UserError` and `RunBroken` for what keeps all others from being answered, too."""
        if row["ended"] == Ended.REFUSED:
            raise UserError(f"{row['problem']}. Mend that; the same command continues with the rows that are left.")
        if row["ended"] == Ended.BROKEN:
            raise RunBroken(f"{row['problem']}; the same command continues with the rows that are left")
        self.ended[row["ended"]] += 1
        self.searches += row["searches"]
        self.cost_usd += row["cost_usd"]
        if row["ended"] == Ended.SPOILT:
            self.first_spoilt = self.first_spoilt or row["problem"]
        else:
            self.done += 1
        if row["failure"] == Failure.DATA:
            self.data += 1
            self.first_data = self.first_data or row["problem"]

    def __str__(self) -> str:
        seconds = time.monotonic() - self.began
        saved = self.ended[Ended.SAVED]
        words = [f"{saved} rows in {seconds:.0f} s", f"{self.searches} searches"]
        words += [f"{self.cost_usd:.2f} USD"] if self.cost_usd else []
        words += [f"{self.data} could not be asked, the first: {self.first_data}"] if self.data else []
        return ", ".join(words)


class RowsProgress:
    """Rows as a bar; a line now and then where there is no terminal."""

    def __init__(self, counts: Counts, console: Console) -> None:
        self._counts, self._console = counts, console
        self._bar = Progress(
            TextColumn("predict"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("predict", total=counts.rows, completed=counts.done)
        self._printed_at = time.monotonic()

    def __enter__(self) -> RowsProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self) -> None:
        """What the counts are now."""
        self._bar.update(self._task, completed=self._counts.done)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed_at >= LINE_EVERY_S:
            self._printed_at = now
            self._console.print(f"predict: {self._counts.done} of {self._counts.rows}", highlight=False)


def _conclude(settings: Settings, target: Target, identity: Mapping[str, Any], rows: int, console: Console) -> None:
    parts = Parts.in_folder(target.parts)
    if len(parts.rows) < rows:
        raise UserError(
            f"{rows - len(parts.rows)} answers are not in {target.parts}, though they were written: --out must be in a"
            " folder that all nodes see under the same path, or on s3://."
        )
    target.write(parts, identity, settings.predict.rows_per_file)
    console.print(f"predict: {rows} answers are at {target.address}", highlight=False, soft_wrap=True)
