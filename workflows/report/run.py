"""`mmsearch report`: reads runs and writes one page about them."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.report import comparing, sources
from workflows.report.episodes import Shown, shown_of
from workflows.report.page import page
from workflows.report.pictures import Album

FILE = "report.html"
EPISODES = 40  # of each arm, unless told otherwise
MOST_EPISODES = 640  # of all arms of all runs together, unless told otherwise


@dataclass(frozen=True)
class Written:
    """A report and where it is. `size` in bytes."""

    folder: Folder
    name: str
    size: int
    missing: tuple[tuple[str, str], ...]  # what no report could show, and the command that makes it
    damaged: tuple[str, ...]  # what is there and could not be read

    @property
    def address(self) -> str:
        return f"{self.folder}/{self.name}"


def run(words: Sequence[str], out: str | None = None, episodes: int | None = None, show: bool = False) -> None:
    """The command. Raise `UserError` for what is no run, or cannot be written."""
    console = Console()
    written = write_report([sources.run_at(word) for word in words], out, episodes=episodes)
    for note in written.damaged:
        console.print(f"[yellow]damaged:[/] {escape(note)}", highlight=False, soft_wrap=True)
    for what, command in written.missing:
        console.print(f"not there yet: {what}: {command}", markup=False, highlight=False, soft_wrap=True)
    size = f"{written.size / 1e6:.1f} MB"
    console.print(f"report: {written.address} ({size})", markup=False, highlight=False, soft_wrap=True)
    if show:
        webbrowser.open((written.folder.local_path / written.name).as_uri())


def write_report(folders: Sequence[Folder], out: str | None = None, *, episodes: int | None = None) -> Written:
    """One page about these runs, at `out`, or else as report.html in the first one.

    `episodes`: how many of each arm are shown. Raise `UserError` for a folder that is no run, or an `out` that cannot
    be written.
    """
    for folder in folders:
        if not sources.is_run(folder):
            raise UserError(f"There is no run at {folder}: give the folder of a run.")
    where, name = _destination(folders[0], out)
    where.ensure_writable()
    runs = [sources.read_run(f, n) for f, n in zip(folders, sources.names_of(folders), strict=True)]
    arms = sum(len(run.arms) + 1 for run in runs)
    each = min(EPISODES, max(1, MOST_EPISODES // arms)) if episodes is None else episodes
    album = Album()
    shown: list[Shown] = [shown_of(run, each, album) for run in runs]
    pooled = comparing.over_seeds(runs) if comparing.seeds_alone(runs) else {}
    data = page(runs, shown, album, dict(pooled), time.time()).encode()
    where.write_bytes(name, data)
    missing = tuple(dict.fromkeys(m for run in runs for m in run.missing))
    damaged = tuple(f"{run.name}: {note}" for run in runs for note in run.notes)
    return Written(where, name, len(data), missing, damaged)


def _destination(first: Folder, out: str | None) -> tuple[Folder, str]:
    """A folder and the file's name in it."""
    if out is None:
        return first, FILE
    if "://" not in out and Path(out).is_dir():
        return Folder(out), FILE
    above, _, name = out.rpartition("/")
    if not name:
        return Folder(out), FILE
    return Folder(above or ("/" if out.startswith("/") else ".")), name
