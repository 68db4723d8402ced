"""`mmsearch bench chaos`: a GRPO run under `--restarts` whose processes are killed at random, and what it made of it.

    the run   mmsearch grpo --restarts ... in grpo.folder=bench/chaos, a checkpoint after every step
    the kill  every so many seconds one process of its family, SIGKILL, or SIGSTOP for one that shall hang;
              who is hit comes from a shuffled bag (chaos_kills.py), so that all kinds are, at least once
    the end   as by Ctrl-C

Nothing is simulated: processes die. Told are, for each kill, the seconds until the run was whole again and the steps
that were done twice for it; and what `chaos_checks` finds in the run's folder afterwards. Exit code 1 when that is
anything, or when the run went on in no good order; a time or a speed that misses its target is told and no more, for it
depends on what else the machine does.

Always true: whatever becomes of the run, results.json says it; one that does not stop is killed, with all that it
started.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from workflows.bench.chaos_checks import problems
from workflows.bench.chaos_kills import (
    CONTROLLER,
    TARGET_SPEED,
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
from workflows.grpo.settings import GrpoSettings

Answer = TypeVar("Answer")

FOLDER = "bench/chaos"
LOOK_S = 0.25
STARTS_WITHIN_S = 600.0  # the first step, on a busy machine
THERE_WITHIN_S = 60.0  # one to kill: a kind may be between two processes
WHOLE_WITHIN_S = 300.0  # after a kill; beyond it the bench ends
STOPS_WITHIN_S = 180.0  # beyond it the run is killed, with all that it started
OUTLIVES_S = 60.0  # for what a dead controller had started to notice
STOPPED = 130  # the exit code of a run that ended as by Ctrl-C


def run(settings: Any, form: ChaosForm, words: Sequence[str], *, as_json: bool = False) -> None:
    """The command. `words`: what the run is configured by, as on the command line.

    Raise `UserError` where there is nothing to begin with, `RunBroken` when something is not as it must be.
    """
    console = Console(stderr=True)
    folder = settings.run.folder / FOLDER
    if not (settings.run.folder / "sft/export").exists("config.json") and settings.grpo.start_from is None:
        raise UserError(f"There is no SFT model in {settings.run.folder}: run `mmsearch demo` or `mmsearch sft` first.")
    if not folder.is_local:
        raise UserError("bench chaos kills processes of this machine: give it a local run.storage.")
    folder.delete("")
    log = folder.local_path / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = _Progress(folder, log)
    with log.open("w") as out:
        suffered = _suffered(_command(settings.grpo, words), out, progress, form, console)
    steps = training_steps(folder)
    work = [(float(step["time"]) - progress.began, float(step.get("sampled/episodes", 0))) for step in steps]
    wrong = [*suffered.wrong, *problems(folder, settings.grpo), *costs(suffered.kills)]
    document = {
        "form": asdict(form),
        "kills": [asdict(kill) | {"late": kill.late} for kill in suffered.kills],
        "exit_code": suffered.exit_code,
        "steps": len(steps),
        "problems": wrong,
        **speeds(work, suffered.kills),
    }
    folder.write_json("results.json", document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console())
    if wrong:
        raise RunBroken(f"{len(wrong)} things are not as they must be, the first: {wrong[0]}")


def _command(grpo: GrpoSettings, words: Sequence[str]) -> list[str]:
    fixed = (
        f"grpo.folder={FOLDER}", "grpo.steps=1000000", "grpo.checkpoint_every=1", "grpo.evaluation.every=0",
        "grpo.start_check_questions=0", "grpo.probe_every_s=3", "grpo.probe_timeout_s=10", "engine.answer_timeout_s=7",
        f"grpo.trajectories_per_step={grpo.groups_per_step * grpo.group_size}",
    )  # fmt: skip
    return [sys.executable, "-m", "workflows.cli", "grpo", "--restarts", "5", *words, *fixed]


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


@dataclass
class _Suffered:
    """What was done to the run, and how it ended."""

    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # in its going on and its end, a sentence each
    exit_code: int | None = None  # None: it did not stop, and was killed


def _suffered(command: Sequence[str], out: TextIO, progress: _Progress, form: ChaosForm, console: Console) -> _Suffered:
    """Run it, kill its processes for as long as was asked, stop it in good order."""
    progress.began = time.time()
    wide = {**os.environ, "COLUMNS": "200"}  # what it says is looked for line by line
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=wide)
    suffered = _Suffered()
    try:
        _under_fire(process, progress, form, suffered.kills, console)
    except UserError as error:
        suffered.wrong.append(error.message)
    finally:
        by_itself = process.poll()
        suffered.exit_code = _stopped(process) if by_itself is None else by_itself
    if suffered.exit_code is None:
        suffered.wrong.append(f"the run did not stop within {STOPS_WITHIN_S:g} s and was killed")
    elif by_itself is None and suffered.exit_code != STOPPED:
        suffered.wrong.append(f"when it was stopped the run ended with exit code {suffered.exit_code}, not {STOPPED}")
    return suffered


def _under_fire(
    process: subprocess.Popen[bytes], progress: _Progress, form: ChaosForm, kills: list[Kill], console: Console
) -> None:
    """Add to `kills` until it is enough. Raise `UserError` for a run that ends, or does not become whole again."""
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


def _stopped(process: subprocess.Popen[bytes]) -> int | None:
    """Stop it as by Ctrl-C; its exit code. None: it did not stop, and was killed with all that it had started."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # also when a person would not wait
            family = _family(process)
            process.kill()  # first, for it starts again what dies
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


@dataclass(frozen=True)
class _Blow:
    """A signal that reached its process."""

    kill: Kill  # as far as it is known at once
    told: int  # characters that the run had said before
    there: frozenset[int]  # pids of the kind before
    family: Sequence[psutil.Process]  # of a controller


def _hit(victim: Victim, process: subprocess.Popen[bytes], progress: _Progress, rng: random.Random) -> Kill:
    """Kill one of that kind, and wait until the run is whole again."""
    blow = _until(
        lambda: _struck(victim, process, progress, rng), process, THERE_WITHIN_S, f"had no {victim.name} to kill"
    )

    def again() -> bool:
        replaced = not victim.back and any(one.pid not in blow.there for one in _of_kind(victim, process))
        return whole(victim, progress.text()[blow.told :], blow.kill.step, progress.step(), replaced)

    _until(again, process, WHOLE_WITHIN_S, f"lost its {victim.name}, and was not whole again")
    whole_s = progress.now - blow.kill.at_s
    done_again = repeated(progress.text(), blow.told)
    return replace(blow.kill, whole_s=whole_s, repeated=done_again, left=_left(blow.family, whole_s))


def _struck(victim: Victim, process: subprocess.Popen[bytes], progress: _Progress, rng: random.Random) -> _Blow | None:
    """None where there is none of that kind now, or it ended by itself meanwhile."""
    found = _of_kind(victim, process)
    if not found:
        return None
    chosen = rng.choice(found)
    told, at_s = len(progress.text()), progress.now
    try:
        family = chosen.children(recursive=True) if victim == CONTROLLER else []
        chosen.send_signal(victim.how)
    except psutil.NoSuchProcess:
        return None
    kill = Kill(victim.name, at_s, progress.step(), victim.bound_s)
    return _Blow(kill, told, frozenset(one.pid for one in found), family)


def _left(family: Sequence[psutil.Process], waited_s: float) -> tuple[str, ...]:
    """Kinds of the run's own processes that outlive their controller; Ray's own agents take their time."""
    _, alive = psutil.wait_procs(family, timeout=max(0.0, OUTLIVES_S - waited_s))
    titles = [_title(one) for one in alive]
    return tuple(sorted({victim.title for victim in VICTIMS if any(victim.title in title for title in titles)}))


def _until(
    condition: Callable[[], Answer | None], process: subprocess.Popen[bytes], seconds: float, what: str
) -> Answer:
    """The first answer that is true. Raise `UserError` for none in time, and for a run that ends meanwhile."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        _pause(LOOK_S, process)
        if time.monotonic() > deadline:
            raise UserError(f"The run {what} within {seconds:g} s; its log is {FOLDER}/log.txt in the run's folder.")
    return answer


def _pause(seconds: float, process: subprocess.Popen[bytes]) -> None:
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
    raise UserError(f"The run ended by itself with {code}; its log is {FOLDER}/log.txt in the run's folder.")


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All that it has started, but itself; none when it has ended."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _of_kind(victim: Victim, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [one for one in _family(process) if victim.title in _title(one)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# --- what it comes to -------------------------------------------------------------------------------------------------


def show(document: Mapping[str, Any], console: Console) -> None:
    """The kills by kind, then the run."""
    table = Table("killed", "times", "whole again after", "target", "steps repeated", title="a run under fire")
    for victim in VICTIMS:
        mine = [kill for kill in document["kills"] if kill["victim"] == victim.name]
        if mine:
            worst = max(kill["whole_s"] for kill in mine)
            again = max(kill["repeated"] for kill in mine)
            late = sum(kill["late"] for kill in mine)
            verdict = f"missed {late} times" if late else "reached"
            target = f"{victim.bound_s:.0f} s: {verdict}"
            table.add_row(victim.name, str(len(mine)), f"{worst:.0f} s at most", target, str(again))
    console.print(table)
    if document["speed_reached"] is not None:
        share = document["between_per_s"] / document["undisturbed_per_s"]
        verdict = "reached" if document["speed_reached"] else "missed"
        told = f"episodes a second between recoveries and kills: {share:.0%} of those undisturbed"
        console.print(f"{told}, to be at least {TARGET_SPEED:.0%}: {verdict}", highlight=False)
    console.print(f"{document['steps']} steps; problems found: {document['problems'] or 'none'}", markup=False)
