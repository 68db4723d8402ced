"""Stages one after the other: reused where they are done, continued where they were stopped, with honest times."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.rule import Rule

from cluster.errors import UserError
from workflows.progress import interrupts_noted
from workflows.stage import Due, Stage, StageBook, fingerprints, remaining


@dataclass(frozen=True)
class Task:
    """A stage that is to be done with certain settings."""

    stage: Stage
    settings: Any
    fingerprint: str


def tasks_of(stages: Sequence[Stage], settings: Any, before: Mapping[str, str] | None = None) -> list[Task]:
    """`before`: fingerprints of stages that these build on and that are made with other settings."""
    marks = fingerprints(stages, settings, before or {})
    return [Task(stage, settings, marks[stage.name]) for stage in stages]


class Play:
    """The tasks of one run's folder. `took`: seconds of each stage, of all its parts; `reused` are among them."""

    def __init__(
        self, tasks: Sequence[Task], book: StageBook, expected: Mapping[str, float], stack: ExitStack, console: Console
    ) -> None:
        """`expected`: seconds by the stages' names."""
        self.tasks, self.book, self.expected, self.console = tasks, book, dict(expected), console
        self._stack = stack  # what is open until the last stage has ended: Ray
        self._connected = False
        self.took: dict[str, float] = {}
        self.reused: set[str] = set()

    def all(self) -> None:
        """Do what is to be done. Raises `UserError` for a run of another configuration, and what a stage raises.

        KeyboardInterrupt comes at the latest when the stage ends during which Ctrl-C was pressed.
        """
        marks = {task.stage.name: task.fingerprint for task in self.tasks}
        if mixture := self.book.mixture([task.stage for task in self.tasks], marks):
            raise UserError(
                f"The run at {self._where()} has another configuration ({mixture}): give this one a run.name of its"
                " own, or delete that folder."
            )
        self._announce()
        with interrupts_noted() as pressed:
            for number, task in enumerate(self.tasks, start=1):
                self._one(task, f"{number}/{len(self.tasks)}")
                if pressed:
                    raise KeyboardInterrupt

    def _announce(self) -> None:
        due = [task for task in self.tasks if self.book.due(task.stage, task.fingerprint) is not Due.REUSED]
        seconds = sum(self._expected_of(task) for task in due)
        n = len(self.tasks)
        say = f"{len(due)} of {n} stages, about {spoken(seconds)}" if due else "every stage is done already"
        self.console.print(f"[bold]mmsearch demo[/]: {say}. Everything goes to {self._where()}")
        if due:
            self.console.print("Ctrl-C stops it; the same command continues where it was.")

    def _one(self, task: Task, number: str) -> None:
        stage, fingerprint = task.stage, task.fingerprint
        due, spent = self.book.due(stage, fingerprint), self.book.spent(stage, fingerprint)
        if due is Due.REUSED:
            self.took[stage.name] = spent
            self.reused.add(stage.name)
            self.console.print(f"{number} {stage.name}: reused, done before with this configuration ({spoken(spent)})")
            return
        self.console.print(Rule(f"{number} {stage.name}", align="left"))
        about, left = self._expected_of(task), self._left()
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
                self._connect(task.settings)
            call(stage, task.settings)
        except BaseException:
            self.book.note(stage, fingerprint, spent + time.monotonic() - began, complete=False)
            raise
        self.took[stage.name] = spent + time.monotonic() - began
        self.book.note(stage, fingerprint, self.took[stage.name], complete=True)
        self.console.print(f"{stage.name}: done in {spoken(self.took[stage.name])}", highlight=False)

    def _where(self) -> str:
        return str(self.tasks[0].settings.run.folder)

    def _left(self) -> float:
        fresh = {name: seconds for name, seconds in self.took.items() if name not in self.reused}
        open_ones = {name: s for name, s in self.expected.items() if name not in self.reused}
        return remaining(open_ones, fresh)

    def _expected_of(self, task: Task) -> float:
        return max(self.expected.get(task.stage.name, 0.0) - self.book.spent(task.stage, task.fingerprint), 1.0)

    def _connect(self, settings: Any) -> None:
        """One Ray for all stages: each of them finds it running and leaves it alone."""
        if not self._connected:
            from cluster import runtime

            self._stack.enter_context(runtime.connect(settings.cluster))
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
