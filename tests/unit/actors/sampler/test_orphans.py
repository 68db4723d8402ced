"""Processes of an engine end with their owner, and only then."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from actors.sampler.orphans import OrphanGuard, carriers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")

OWNER = """
import subprocess, sys
from actors.sampler.orphans import OrphanGuard
guard = OrphanGuard()
with guard.marked():
    child = subprocess.Popen([sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
bystander = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=sys.stdin)
print(child.pid, bystander.pid, guard._token, flush=True)
if sys.argv[1] == "dismiss":
    guard.dismiss()
    print(child.poll(), flush=True)
    child.kill()
sys.stdin.read()
"""


def _owner(manner: str) -> tuple[subprocess.Popen[str], int, int, str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, manner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    child, bystander, token = owner.stdout.readline().split()
    return owner, int(child), int(bystander), token


def test_a_killed_owner_takes_its_marked_processes_along_and_no_others():
    import psutil

    owner, child, bystander, token = _owner("killed")
    try:
        assert carriers(token) == [child]
        marked, other = psutil.Process(child), psutil.Process(bystander)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        marked.wait(20)
        assert not psutil.pid_exists(child)
        assert other.is_running()
    finally:
        owner.kill()
        owner.communicate()  # closes the pipe that the bystander reads


def test_a_dismissed_guard_kills_nothing():
    owner, _, _, _ = _owner("dismiss")
    assert owner.stdout is not None
    assert owner.stdout.readline().strip() == "None"
    owner.communicate(timeout=20)


def test_the_mark_does_not_stay_in_the_owner(monkeypatch):
    import os

    guard = OrphanGuard()
    before = dict(os.environ)
    with guard.marked():
        assert dict(os.environ) != before
    assert dict(os.environ) == before
    guard.dismiss()
    guard.dismiss()  # twice is fine
