"""Commands that are started again; the children are real processes that live for milliseconds."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.drives import S3Failed
from workflows.supervisor import FINAL, SUPERVISED, UNTOLD, Restarts, supervise

# each start leaves a line; what the n-th one does is the n-th word: exit code, `kill`, or `wait` to be stopped
CHILD = """
import os, signal, sys, time
log, *deeds = sys.argv[1:]
with open(log, "a") as out:
    out.write(os.environ["MMSEARCH_SUPERVISED"] + "\\n")
deed = deeds[len(open(log).readlines()) - 1]
if deed == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "wait":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    open(log + ".waits", "w").close()
    time.sleep(60)
sys.exit(int(deed))
"""


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("workflows.supervisor.FIRST_WAIT_S", 0.01)


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture
def run(log):
    def supervised(*deeds, limit=2, progress=lambda: None):
        said = []
        code = supervise([sys.executable, "-c", CHILD, str(log), *deeds], limit, progress, said.append)
        return code, len(log.read_text().splitlines()), said

    return supervised


@pytest.mark.parametrize("code", FINAL)
def test_what_is_done_refused_or_stopped_is_not_started_again(run, code):
    assert run(str(code)) == (code, 1, [])


def test_a_command_that_was_killed_is_started_again(run):
    code, starts, said = run("kill", "0")
    assert (code, starts) == (0, 2)
    assert "SIGKILL" in said[0]


def test_crashes_without_progress_end_it_with_the_last_ones_code(run, log):
    assert run("1", "kill", "3", limit=2)[:2] == (3, 3)
    log.write_text("")
    assert run("1", "kill", limit=1)[:2] == (128 + signal.SIGKILL, 2)


def test_who_gets_further_may_crash_as_often_as_it_likes(run, log):
    lines = lambda: len(log.read_text().splitlines())  # noqa: E731
    assert run("1", "1", "1", "1", "1", "0", limit=1, progress=lines)[:2] == (0, 6)


def test_who_asks_it_to_stop_asks_the_command_and_nothing_is_started_after_it(run, log):
    def ask():
        while not os.path.exists(f"{log}.waits"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    assert run("wait", "0")[:2] == (130, 1)
    asking.join()


def test_who_asks_between_two_starts_is_heeded(run):
    moments = iter(["at the start", "after the crash"])

    def progress():
        if next(moments) == "after the crash":
            os.kill(os.getpid(), signal.SIGINT)

    assert run("1", "0", progress=progress)[:2] == (130, 1)


@pytest.mark.parametrize("deeds", [["wait"], ["kill", "wait"]], ids=["first", "second"])
def test_a_signal_that_comes_while_the_command_is_being_started_reaches_it(run, monkeypatch, deeds):
    started, start = [], subprocess.Popen

    def interrupted(*args, **options):
        started.append(start(*args, **options))
        if len(started) == len(deeds):
            os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr("workflows.supervisor.subprocess.Popen", interrupted)
    assert run(*deeds)[0] == 128 + signal.SIGTERM
    assert len(started) == len(deeds)


def test_an_outage_of_what_tells_its_progress_is_said_and_counts_as_none(run, log):
    def unreachable():
        raise S3Failed("S3 failed: no route to host; check the network.")

    code, starts, said = run("kill", "0", progress=unreachable)
    assert (code, starts) == (0, 2)
    known = [says for says in said if "S3 failed: no route to host" in says]
    assert known == said[:2]  # at the start and after the crash
    log.write_text("")
    assert run("1", "1", "1", "0", limit=2, progress=unreachable)[:2] == (1, 3)


def test_a_parent_that_is_killed_takes_the_command_along(tmp_path):
    child = "import os, time; from workflows import supervisor; supervisor.end_with_parent()"
    child += "; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import sys, workflows.supervisor as s; s.supervise([sys.executable, '-c', {child!r}], 1, int, print)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent has died")
def test_a_parent_that_died_before_the_command_could_listen_takes_it_along():
    child = [sys.executable, "-c", "from workflows import supervisor; supervisor.end_with_parent(); print('goes on')"]

    def ended(parent):
        environ = {**os.environ, SUPERVISED: str(parent)}
        return subprocess.run(child, env=environ, stdout=subprocess.PIPE, text=True, check=False)

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert (ended(dead.pid).returncode, ended(dead.pid).stdout) == (-signal.SIGTERM, "")
    assert (ended(os.getpid()).returncode, ended(os.getpid()).stdout) == (0, "goes on\n")


def test_what_is_not_told_is_no_progress_and_hides_none():
    restarts, in_vain = Restarts(9, UNTOLD), []
    for progress in (UNTOLD, 1, 1, UNTOLD, 2, UNTOLD):
        restarts.wait_after(progress)
        in_vain.append(restarts.in_vain)
    assert in_vain == [1, 2, 3, 4, 1, 2]


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5))
def test_it_gives_up_exactly_after_so_many_crashes_in_vain(ends, limit):
    restarts, place, in_vain = Restarts(limit, 0), 0, 0
    for further in ends:
        place += further
        in_vain = 1 if further else in_vain + 1
        wait = restarts.wait_after(place)
        assert (wait is None) == (in_vain > limit)
        if wait is None:
            return
