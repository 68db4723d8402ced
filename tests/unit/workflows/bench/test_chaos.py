"""What the bench under fire makes of runs that go wrong; the runs are real processes that live for moments."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from rich.console import Console

from cluster.errors import RunBroken, UserError
from cluster.storage import Folder
from tests.unit.workflows.bench.test_chaos_checks import line
from workflows.bench import chaos
from workflows.bench.chaos_kills import VICTIMS, ChaosForm, Kill
from workflows.settings import load

SHORT = ChaosForm(minutes=0.001, every_s=0.1)
WORKER = next(victim for victim in VICTIMS if victim.name == "search worker")
FIRST_STEP = f"open('metrics.jsonl', 'w').write({json.dumps(line(1))!r} + '\\n')"

# makes a step and neither it nor what it started can be asked to stop
HANGS = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("child", "w").write(str(child.pid))
{FIRST_STEP}
time.sleep(60)
"""

# goes on without its search worker, which is there again after a while
STEPS_ON = """
import json, subprocess, sys, time
def begun():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "ray::SearchWorker"])
worker, died, step = begun(), None, 0
while True:
    step += 1
    with open("metrics.jsonl", "a") as out:
        out.write(json.dumps({"step": step, "time/step_s": 0.02}) + "\\n")
    if worker.poll() is not None:
        died = died or time.monotonic()
        if time.monotonic() - died > 0.8:
            worker = begun()
            time.sleep(60)
    time.sleep(0.02)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The command on a run that is this program; returns the document, and whether the command was content."""

    def made(program):
        settings = load("miniature", [f"run.storage={tmp_path}"])
        (tmp_path / "sft/export").mkdir(parents=True)
        (tmp_path / "sft/export/config.json").touch()
        start = f"import os; os.chdir({str(tmp_path / chaos.FOLDER)!r})\n{program}"
        monkeypatch.setattr(chaos, "_command", lambda *_: [sys.executable, "-c", start])
        try:
            chaos.run(settings, SHORT, [], as_json=True)
        except RunBroken:
            return json.loads((tmp_path / chaos.FOLDER / "results.json").read_text()), False
        return json.loads((tmp_path / chaos.FOLDER / "results.json").read_text()), True

    return made


@pytest.fixture
def stepping_on(tmp_path):
    """A run under way, and what is seen of it."""
    log = tmp_path / "log"
    log.touch()
    process = subprocess.Popen([sys.executable, "-c", STEPS_ON], cwd=tmp_path)
    yield process, chaos._Progress(Folder(tmp_path), log, time.time())
    for one in [*chaos._family(process), psutil.Process(process.pid)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def test_a_run_that_ends_by_itself_is_a_problem_that_is_written_down(bench):
    found, content = bench("raise SystemExit(3)")
    assert not content
    assert found["exit_code"] == 3
    by_itself, *others = found["problems"]
    assert by_itself.startswith("The run ended by itself with 3")
    assert others == ["no step was made"]


def test_a_run_that_cannot_be_stopped_is_killed_with_what_it_started_and_written_down(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "THERE_WITHIN_S", 0.1)
    monkeypatch.setattr(chaos, "STOPS_WITHIN_S", 0.5)
    found, content = bench(HANGS)
    assert not content
    assert found["exit_code"] is None
    assert found["steps"] == 1
    nobody, hangs, *_ = found["problems"]
    assert "to kill within 0.1 s" in nobody
    assert hangs == "the run did not stop within 0.5 s and was killed"
    child = int((tmp_path / chaos.FOLDER / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_ends_before_the_blow_is_not_hit(stepping_on, monkeypatch):
    process, progress = stepping_on
    with subprocess.Popen([sys.executable, "-c", ""]) as brief:
        gone = psutil.Process(brief.pid)
    monkeypatch.setattr(chaos, "_of_kind", lambda *_: [gone])
    assert chaos._struck(WORKER, process, progress, random.Random(0)) is None


def test_a_run_that_steps_on_without_its_search_worker_is_whole_when_there_is_another_one(stepping_on):
    process, progress = stepping_on
    chaos._until(lambda: progress.step() > 0, process, 30.0, "made no step")
    kill = chaos._hit(WORKER, process, progress, random.Random(0))
    assert kill.whole_s > 0.8  # dozens of steps later


def test_a_run_that_loses_a_kind_for_good_says_so(stepping_on, monkeypatch):
    process, progress = stepping_on
    monkeypatch.setattr(chaos, "WHOLE_WITHIN_S", 0.5)
    with pytest.raises(UserError, match=r"lost its search worker, and was not whole again within 0\.5 s"):
        chaos._hit(WORKER, process, progress, random.Random(0))


def test_targets_of_time_and_speed_are_told_as_reached_or_missed(capsys):
    kills = [Kill("sampler", 0.0, 1, 45.0, 44.0), Kill("sampler", 0.0, 1, 45.0, 46.0), Kill("engine", 0, 1, 45.0, 9.0)]
    document = {
        "kills": [{"victim": k.victim, "whole_s": k.whole_s, "repeated": 0, "late": k.late} for k in kills],
        "steps": 7, "problems": [], "undisturbed_per_s": 1.0, "between_per_s": 0.8, "speed_reached": False,
    }  # fmt: skip
    chaos.show(document, Console(width=120))
    said = capsys.readouterr().out
    assert "45 s: missed 1 times" in said
    assert "45 s: reached" in said
    assert "80% of those undisturbed, to be at least 90%: missed" in said
