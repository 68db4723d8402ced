"""`mmsearch demo`: every stage on this machine, for real, from nothing to the table.

Stopped with Ctrl-C it is continued by the same command; stages that are finished with the same configuration are
reused. Each stage is the function that its own command calls; here they follow each other on one Ray.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from cluster.errors import UserError
from cluster.footprint import MemoryWatch
from cluster.storage import Folder
from workflows.stage import Due, Stage, StageBook, fingerprints, remaining

STAGES = (
    Stage(
        "pretrain",
        "workflows.embedded.pretrain:run",
        "make the synthetic web and a tiny Qwen2.5-VL that sees, knows a few organisations, and reads",
        settings=("world", "pretrain", "run.seed"),
        outputs=("world", "base/config.json"),
        ray=False,
    ),
    Stage(
        "dataset",
        "workflows.dataset.build:run",
        "draw questions, and let a scripted teacher answer them with the real tools",
        settings=("mix", "dataset", "agent", "search", "run.seed"),
        needs=("pretrain",),
        outputs=("dataset/questions/train", "dataset/questions/test", "dataset/sft"),
    ),
    Stage(
        "sft",
        "workflows.sft:run",
        "fine-tune the base model on the teacher's conversations",
        settings=("sft", "agent", "run.seed"),
        needs=("pretrain", "dataset"),
        outputs=("sft/export/config.json",),
    ),
    Stage(
        "grpo",
        "workflows.grpo.run:run",
        "reinforce what is right and searched for no more than needed: asynchronous GRPO",
        settings=("grpo", "learner", "engine", "agent", "search", "reward", "run.seed"),
        needs=("dataset", "sft"),
        outputs=("grpo/export/config.json",),
        refuses=True,
    ),
    Stage(
        "evaluate",
        "workflows.evaluate.run:run",
        "ask what none of them was trained on: without tools, with forced retrieval, after SFT, after RL",
        settings=("evaluate", "engine", "agent", "search", "reward", "run.seed"),
        needs=("dataset", "sft", "grpo"),
        outputs=("evaluate/results.json",),
    ),
)


def run(settings: Any, console: Console | None = None) -> None:
    """The command. Raises `UserError` of a stage, and KeyboardInterrupt when stopped."""
    console = console or Console(stderr=True)
    folder: Folder = settings.run.folder
    folder.ensure_writable()
    expected = dataclasses.asdict(settings.demo.expected)
    with ExitStack() as stack:
        memory = stack.enter_context(MemoryWatch(settings.demo.memory_every_s))
        play = Play(settings, StageBook(folder), expected, stack, console)
        play.all(STAGES)
        memory.look()
    _finish(settings, play, memory.peak, console)


class Play:
    """Stages one after the other. `took`: seconds of each stage, of all its parts; `reused` are among them."""

    def __init__(
        self, settings: Any, book: StageBook, expected: Mapping[str, float], stack: ExitStack, console: Console
    ) -> None:
        self.settings, self.book, self.expected, self.console = settings, book, dict(expected), console
        self._stack = stack  # what is open until the last stage has ended: Ray
        self._connected = False
        self.took: dict[str, float] = {}
        self.reused: set[str] = set()

    def all(self, stages: Sequence[Stage]) -> None:
        marks = fingerprints(stages, self.settings)
        if mixture := self.book.mixture(stages, marks):
            folder = self.settings.run.folder
            raise UserError(
                f"The run at {folder} has another configuration ({mixture}): give this one a run.name of its own,"
                " or delete that folder."
            )
        self._announce(stages, marks)
        for number, stage in enumerate(stages, start=1):
            self._one(stage, marks[stage.name], f"{number}/{len(stages)}")

    def _announce(self, stages: Sequence[Stage], marks: Mapping[str, str]) -> None:
        due = [stage for stage in stages if self.book.due(stage, marks[stage.name]) is not Due.REUSED]
        seconds = sum(self._expected_of(stage, marks[stage.name]) for stage in due)
        say = f"{len(due)} of {len(stages)} stages, about {spoken(seconds)}" if due else "every stage is done already"
        self.console.print(f"[bold]mmsearch demo[/]: {say}. Everything goes to {self.settings.run.folder}")
        if due:
            self.console.print("Ctrl-C stops it; the same command continues where it was.")

    def _one(self, stage: Stage, fingerprint: str, number: str) -> None:
        due, spent = self.book.due(stage, fingerprint), self.book.spent(stage, fingerprint)
        if due is Due.REUSED:
            self.took[stage.name] = spent
            self.reused.add(stage.name)
            self.console.print(f"{number} {stage.name}: reused, done before with this configuration ({spoken(spent)})")
            return
        self.console.print(Rule(f"{number} {stage.name}", align="left"))
        about, left = self._expected_of(stage, fingerprint), self._left()
        rest = f"; about {spoken(left)} left in all" if left > 1.5 * about else ""
        self.console.print(f"{stage.says}: about {spoken(about)}{rest}", highlight=False)
        if due is Due.CHANGED:
            self.console.print("The configuration has changed since this stage was made.")
        elif due is Due.CONTINUED:
            self.console.print(f"It was begun before and continues ({spoken(spent)} so far).")
        self.book.note(stage, fingerprint, spent, complete=False)
        began = time.monotonic()
        try:
            if stage.ray:
                self._connect()
            call(stage, self.settings)
        except BaseException:
            self.book.note(stage, fingerprint, spent + time.monotonic() - began, complete=False)
            raise
        self.took[stage.name] = spent + time.monotonic() - began
        self.book.note(stage, fingerprint, self.took[stage.name], complete=True)
        self.console.print(f"{stage.name}: done in {spoken(self.took[stage.name])}", highlight=False)

    def _left(self) -> float:
        fresh = {name: seconds for name, seconds in self.took.items() if name not in self.reused}
        open_ones = {name: s for name, s in self.expected.items() if name not in self.reused}
        return remaining(open_ones, fresh)

    def _expected_of(self, stage: Stage, fingerprint: str) -> float:
        return max(self.expected.get(stage.name, 0.0) - self.book.spent(stage, fingerprint), 1.0)

    def _connect(self) -> None:
        """One Ray for all stages: each of them finds it running and leaves it alone."""
        if not self._connected:
            from cluster import runtime

            self._stack.enter_context(runtime.connect(self.settings.cluster))
            self._connected = True


def call(stage: Stage, settings: Any) -> None:
    """Import a stage's function and run it."""
    module, _, name = stage.run.partition(":")
    getattr(importlib.import_module(module), name)(settings)


def spoken(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _finish(settings: Any, play: Play, peak: int, console: Console) -> None:
    folder: Folder = settings.run.folder
    if "evaluate" in play.reused:
        _show_results(folder)
    times = Table(title="time per stage", title_justify="left")
    times.add_column("stage")
    times.add_column("seconds", justify="right")
    times.add_column("")
    for name, seconds in play.took.items():
        times.add_row(name, f"{seconds:.0f}", "reused" if name in play.reused else "")
    times.add_row("together", f"{sum(play.took.values()):.0f}", "")
    console.print(times)
    console.print(f"peak memory of everything together: {peak / 2**30:.1f} GiB (PSS)", highlight=False)
    folder.write_json("demo.json", {"seconds": play.took, "reused": sorted(play.reused), "peak_memory_bytes": peak})
    console.print(_where(settings), highlight=False)


def _show_results(folder: Folder) -> None:
    """The tables of an evaluation that was not played again."""
    from workflows.evaluate.rows import read_rows
    from workflows.evaluate.run import show

    results = json.loads(folder.read_text("evaluate/results.json"))
    show({arm: read_rows(folder / "evaluate", f"{arm}.parquet") for arm in results["arms"]}, results["max_calls"])


def _where(settings: Any) -> str:
    name, folder = settings.run.name, settings.run.folder
    mine = "" if name == "embedded" else f" run.name={shlex.quote(name)}"
    return (
        f"Everything is at {folder}:\n"
        "  base/ sft/export/ grpo/export/   the models, in Hugging Face format\n"
        "  grpo/metrics.jsonl, tensorboard  the curves; grpo/trajectories: episodes on the way\n"
        "  evaluate/*.parquet               every held-out question and what each arm did about it\n"
        "What to try next:\n"
        f"  mmsearch ask --example 0{mine}              one of the held-out questions, step by step\n"
        f'  mmsearch ask --image picture.png "..."{mine}\n'
        f"  mmsearch demo run.name=other world.seed=1  the same in another world\n"
        f"  mmsearch dataset inspect{mine}              what it was trained on"
    )
