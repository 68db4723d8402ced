"""`mmsearch bench chaos`: a GRPO run under `--restarts` whose processes are killed at random, and what it made of it.

    the run   mmsearch grpo --restarts ... in grpo.folder=bench/chaos, a checkpoint after every step
    the kill  every so many seconds one process of its family, SIGKILL, or SIGSTOP for one that shall hang;
              who is hit comes from a shuffled bag, so that all kinds are

Nothing is simulated: processes die. Told are, for each kill, the seconds until the run was whole again and the steps
that were done twice for it; and what `chaos_checks` finds in the run's folder afterwards.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TextIO

import psutil
from rich.console import Console
from rich.table import Table

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.bench.chaos_checks import problems, rate
from workflows.grpo.recorder import training_steps

FOLDER = "bench/chaos"
LOOK_S = 0.25
STARTS_WITHIN_S = 600.0  # the first step, on a busy machine
WHOLE_WITHIN_S = 300.0  # after a kill; beyond it the bench ends
STOPS_WITHIN_S = 180.0


@dataclass(frozen=True)
class Victim:
    """A kind of process. `title`: what stands in its command line; `back`: what the run says once it is whole again."""

    name: str
    title: str
    how: signal.Signals = signal.SIGKILL
    back: str = ""  # "": a step that was begun after the kill shows it
    bound_s: float = 75.0


VICTIMS = (
    Victim("sampler", "ray::RolloutSampler", back=" is back", bound_s=45.0),
    Victim("engine", "VLLM::EngineCore", back=" is back", bound_s=45.0),
    Victim("sampler that hangs", "ray::RolloutSampler", signal.SIGSTOP, back=" is back", bound_s=45.0),
    Victim("search worker", "ray::SearchWorker", bound_s=45.0),
    Victim("reward evaluator", "ray::RewardEvaluator", bound_s=45.0),
    Victim("learner rank", "ray::PolicyLearner"),
    Victim("controller", "workflows.cli"),
)


@dataclass(frozen=True)
class ChaosForm:
    """How long, how often, and drawn from which seed."""

    minutes: float = 30.0
    every_s: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Kill:
    """One of them. Seconds since the run's start; `whole_s` from the kill on, None when it never was."""

    victim: str
    at_s: float
    step: int  # the last one recorded before it
    bound_s: float
    whole_s: float | None = None
    repeated: int = 0  # steps that were recorded and had to be done again


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
    document = {
        "form": asdict(form),
        "kills": [asdict(kill) for kill in kills],
        "exit_code": ended,
        "steps": len(steps),
        "problems": problems(folder, settings.grpo.max_staleness),
        **_speeds([float(step["time"]) - progress.began for step in steps], kills),
    }
    folder.write_json("results.json", document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console())


# --- what happens -----------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """What can be seen of the run from outside."""

    folder: Folder
    log: Any
    began: float = 0.0

    @property
    def now(self) -> float:
        return time.time() - self.began

    def step(self) -> int:
        steps = training_steps(self.folder)
        return int(steps[-1]["step"]) if steps else 0

    def said(self, what: str) -> int:
        return self.log.read_text(errors="replace").count(what)


def _suffered(
    command: Sequence[str], out: TextIO, progress: _Progress, form: ChaosForm, console: Console
) -> tuple[list[Kill], int]:
    """Run it, kill its processes for as long as was asked, stop it in good order; the kills and its exit code."""
    progress.began = time.time()
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    kills: list[Kill] = []
    try:
        _until(lambda: progress.step() > 0, process, STARTS_WITHIN_S, "made no step")
        bag, rng = _bag(form.seed), random.Random(form.seed)
        first = progress.now
        while progress.now + form.every_s < first + 60 * form.minutes:
            # some time between two kills, never before the run is whole again
            _pause(form.every_s * rng.uniform(0.75, 1.25), process)
            kills.append(_hit(next(bag), process, progress))
            last = kills[-1]
            console.print(f"{last.victim}: whole again after {last.whole_s:.0f} s", highlight=False)
        _pause(form.every_s / 2, process)
        process.send_signal(signal.SIGINT)
        return kills, process.wait(STOPS_WITHIN_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOPS_WITHIN_S)


def _bag(seed: int) -> Iterator[Victim]:
    rng = random.Random(seed)
    while True:
        yield from rng.sample(VICTIMS, len(VICTIMS))


def _hit(victim: Victim, process: subprocess.Popen[bytes], progress: _Progress) -> Kill:
    found = [one for one in psutil.Process(process.pid).children(recursive=True) if victim.title in _title(one)]
    if not found:
        raise UserError(f"There is no process of the kind {victim.name!r} in the run.")
    kill = Kill(victim.name, progress.now, progress.step(), victim.bound_s)
    told, continued = progress.said(victim.back) if victim.back else 0, progress.said("continuing after step")
    found[0].send_signal(victim.how)
    if victim.back:
        _until(lambda: progress.said(victim.back) > told, process, WHOLE_WITHIN_S, f"lost its {victim.name}")
    else:
        # one step may have been as good as done when the blow fell, so the one after it is the proof
        _until(lambda: progress.step() > kill.step + 1, process, WHOLE_WITHIN_S, f"lost its {victim.name}")
    resumed = progress.said("continuing after step") > continued
    return replace(kill, whole_s=progress.now - kill.at_s, repeated=_repeated(progress, kill) if resumed else 0)


def _repeated(progress: _Progress, kill: Kill) -> int:
    lines = [line for line in progress.log.read_text(errors="replace").split("\n") if "continuing after step" in line]
    return max(0, kill.step - int(lines[-1].partition("continuing after step")[2].split()[0]))


def _until(condition: Any, process: subprocess.Popen[bytes], seconds: float, what: str) -> None:
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


def _speeds(times: Sequence[float], kills: Sequence[Kill]) -> dict[str, float | None]:
    """Steps a second from the first step to the first kill, and between each recovery and the next kill."""
    if not times or not kills:
        return {"undisturbed_per_s": None, "between_per_s": None}
    ends = [*(kill.at_s for kill in kills[1:]), times[-1]]
    between = [(kill.at_s + (kill.whole_s or 0.0), end) for kill, end in zip(kills, ends, strict=True)]
    return {"undisturbed_per_s": rate(times, [(times[0], kills[0].at_s)]), "between_per_s": rate(times, between)}


def show(document: dict[str, Any], console: Console) -> None:
    """The kills by kind, then the run."""
    table = Table("killed", "times", "whole again after", "to be", "steps repeated", title="a run under fire")
    for victim in VICTIMS:
        mine = [kill for kill in document["kills"] if kill["victim"] == victim.name]
        if mine:
            worst = max(kill["whole_s"] for kill in mine)
            again = max(kill["repeated"] for kill in mine)
            table.add_row(victim.name, str(len(mine)), f"{worst:.0f} s at most", f"{victim.bound_s:.0f} s", str(again))
    console.print(table)
    speed, quiet = document["between_per_s"], document["undisturbed_per_s"]
    if speed and quiet:
        console.print(f"speed between recoveries and kills: {speed / quiet:.0%} of the undisturbed one (at least 90 %)")
    console.print(f"{document['steps']} steps, each once; problems found: {document['problems'] or 'none'}")
