"""`mmsearch bench chaos`: a GRPO run under `--restarts` whose processes are killed at random, and what it made of it.

    the run   mmsearch grpo --restarts ... in grpo.folder=bench/chaos, a checkpoint after every step
    the kill  every so many seconds one process of its family, SIGKILL, or SIGSTOP for one that shall hang;
              who is hit comes from a shuffled bag (chaos_kills.py), so that all kinds are, at least once
    the end   as by Ctrl-C

Nothing is simulated: processes die. Told are, for each kill, the seconds until the run was whole again and the steps
that were done twice for it; and what `chaos_checks` finds in the run's folder afterwards. Exit code 1 when that is
anything; a time beyond its bound is shown and no more, for it depends on what else the machine does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import psutil
from rich.console import Console
from rich.table import Table

from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from workflows.bench.chaos_checks import problems
from workflows.bench.chaos_kills import (
    CONTROLLER,
    VICTIMS,
    ChaosForm,
    Kill,
    Victim,
    bag,
    costs,
    over,
    repeated,
    speeds,
    whole,
)
from workflows.grpo.recorder import training_steps

FOLDER = "bench/chaos"
LOOK_S = 0.25
STARTS_WITHIN_S = 600.0  # the first step, on a busy machine
WHOLE_WITHIN_S = 300.0  # after a kill; beyond it the bench ends
STOPS_WITHIN_S = 180.0
OUTLIVES_S = 60.0  # for what a dead controller had started to notice
STOPPED = 130  # the exit code of a run that ended as by Ctrl-C


def run(settings: Any, form: ChaosForm, words: Sequence[str], *, as_json: bool = False) -> None:
    """The command. `words`: what the run is configured by, as on the command line. Raise UserError."""
    console = Console(stderr=True)
    folder = settings.run.folder / FOLDER
    if not (settings.run.folder / "sft/export").exists("config.json") and settings.grpo.start_from is None:
        raise UserError(f"There is no SFT model in {settings.run.folder}: run `mmsearch demo` or `mmsearch sft` first.")
    if not folder.is_local:
        raise UserError("bench chaos kills processes of this machine: give it a local run.storage.")
    folder.delete("")
    fixed = (
        f"grpo.folder={FOLDER}", "grpo.steps=1000000", "grpo.checkpoint_every=1", "grpo.evaluation.every=0",
        "grpo.start_check_questions=0", "grpo.probe_every_s=3", "grpo.probe_timeout_s=15", "engine.answer_timeout_s=10",
        f"grpo.trajectories_per_step={settings.grpo.groups_per_step * settings.grpo.group_size}",
    )  # fmt: skip
    command = [sys.executable, "-m", "workflows.cli", "grpo", "--restarts", "5", *words, *fixed]
    log = folder.local_path / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = _Progress(folder, log)
    with log.open("w") as out:
        kills, ended = _suffered(command, out, progress, form, console)
    steps = training_steps(folder)
    wrong = [*problems(folder, settings.grpo), *costs(kills)]
    if ended != STOPPED:
        wrong.append(f"when it was stopped the run ended with exit code {ended}, not {STOPPED}")
    document = {
        "form": asdict(form),
        "kills": [asdict(kill) for kill in kills],
        "exit_code": ended,
        "steps": len(steps),
        "problems": wrong,
        **speeds([float(step["time"]) - progress.began for step in steps], kills),
    }
    folder.write_json("results.json", document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console())
    if wrong:
        raise RunBroken(f"{len(wrong)} things are not as they must be, the first: {wrong[0]}")


# --- what happens -----------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """What can be seen of the run from outside."""

    folder: Folder
    log: Path
    began: float = 0.0

    @property
    def now(self) -> float:
        return time.time() - self.began

    def step(self) -> int:
        steps = training_steps(self.folder)
        return int(steps[-1]["step"]) if steps else 0

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def _suffered(
    command: Sequence[str], out: TextIO, progress: _Progress, form: ChaosForm, console: Console
) -> tuple[list[Kill], int]:
    """Run it, kill its processes for as long as was asked, stop it in good order; the kills and its exit code."""
    progress.began = time.time()
    wide = {**os.environ, "COLUMNS": "200"}  # what it says is looked for line by line
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=wide)
    kills: list[Kill] = []
    try:
        _until(lambda: progress.step() > 0, process, STARTS_WITHIN_S, "made no step")
        victims, rng = bag(form.seed), random.Random(form.seed)
        first = progress.now
        _pause(form.quiet_s, process)
        while not over(form, progress.now - first, kills):
            kills.append(_hit(next(victims), process, progress, rng))
            last = kills[-1]
            console.print(f"{last.victim}: whole again after {last.whole_s:.0f} s", highlight=False)
            # some time between two kills, never before the run is whole again
            _pause(form.every_s * rng.uniform(0.75, 1.25), process)
        process.send_signal(signal.SIGINT)
        return kills, process.wait(STOPS_WITHIN_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOPS_WITHIN_S)


def _hit(victim: Victim, process: subprocess.Popen[bytes], progress: _Progress, rng: random.Random) -> Kill:
    """Kill one of that kind, and wait until the run is whole again."""
    found = [one for one in psutil.Process(process.pid).children(recursive=True) if victim.title in _title(one)]
    if not found:
        raise UserError(f"There is no process of the kind {victim.name!r} in the run.")
    chosen = rng.choice(found)
    family = chosen.children(recursive=True) if victim == CONTROLLER else []
    told = len(progress.text())
    at_s = progress.now
    chosen.send_signal(victim.how)
    kill = Kill(victim.name, at_s, progress.step(), victim.bound_s)

    def again() -> bool:
        return whole(victim, progress.text()[told:], kill.step, progress.step())

    _until(again, process, WHOLE_WITHIN_S, f"lost its {victim.name}")
    kill = replace(kill, whole_s=progress.now - kill.at_s, repeated=repeated(progress.text(), told))
    return replace(kill, left=_left(family, kill.whole_s))


def _left(family: Sequence[psutil.Process], waited_s: float) -> tuple[str, ...]:
    """Kinds of the run's own processes that outlive their controller; Ray's own agents take their time."""
    _, alive = psutil.wait_procs(family, timeout=max(0.0, OUTLIVES_S - waited_s))
    titles = [_title(one) for one in alive]
    return tuple(sorted({victim.title for victim in VICTIMS if any(victim.title in title for title in titles)}))


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        _pause(LOOK_S, process)
        if time.monotonic() > deadline:
            raise UserError(f"The run {what} within {seconds:.0f} s; its log is {FOLDER}/log.txt in the run's folder.")


def _pause(seconds: float, process: subprocess.Popen[bytes]) -> None:
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
    raise UserError(f"The run ended by itself with {code}; its log is {FOLDER}/log.txt in the run's folder.")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# --- what it comes to -------------------------------------------------------------------------------------------------


def show(document: dict[str, Any], console: Console) -> None:
    """The kills by kind, then the run."""
    table = Table("killed", "times", "whole again after", "to be", "steps repeated", title="a run under fire")
    for victim in VICTIMS:
        mine = [kill for kill in document["kills"] if kill["victim"] == victim.name]
        if mine:
            worst = max(kill["whole_s"] for kill in mine)
            again = max(kill["repeated"] for kill in mine)
            late = sum(kill["whole_s"] > victim.bound_s for kill in mine)
            bound = f"{victim.bound_s:.0f} s" + (f" ({late} too late)" if late else "")
            table.add_row(victim.name, str(len(mine)), f"{worst:.0f} s at most", bound, str(again))
    console.print(table)
    speed, quiet = document["between_per_s"], document["undisturbed_per_s"]
    if speed and quiet:
        console.print(f"speed between recoveries and kills: {speed / quiet:.0%} of the undisturbed one (at least 90 %)")
    console.print(f"{document['steps']} steps, each once; problems found: {document['problems'] or 'none'}")
