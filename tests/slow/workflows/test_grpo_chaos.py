"""A GRPO run whose sampler is killed and that is stopped by Ctrl-C still trains every step once."""

import os
import signal
import threading
from dataclasses import replace

import psutil
import pytest

from cluster.telemetry import read
from tests.integration.workflows.test_grpo_run import plan  # noqa: F401 (a fixture)
from workflows.grpo import manifest
from workflows.grpo.run import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def once_step_is_done(folder, step, action):
    """Calls `action` in a thread when the run has made `step` steps; returns what to set to give up waiting."""
    given_up = threading.Event()

    def wait():
        while not given_up.wait(0.2):
            if folder.exists(f"trajectories/step-{step:06d}.parquet"):
                action()
                return

    threading.Thread(target=wait, daemon=True).start()
    return given_up


def kill_our_sampler():
    for process in psutil.Process().children(recursive=True):
        if "RolloutSampler" in " ".join(process.cmdline()):
            process.kill()


def test_a_killed_sampler_is_replaced_and_ctrl_c_loses_nothing(plan, capsys):  # noqa: F811
    long = replace(
        plan,
        grpo=replace(plan.grpo, steps=60, start_check_questions=0, checkpoint_every=50, probe_every_s=1.0, window=1),
    )
    chaos = once_step_is_done(long.folder, 5, kill_our_sampler)
    stop = once_step_is_done(long.folder, 20, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(long)
    chaos.set()
    stop.set()
    told = capsys.readouterr().err
    assert "is fenced" in told
    assert "is back" in told
    facts = manifest.read(long.folder)
    assert not facts["complete"]
    assert 20 <= facts["step"] < 60

    assert train(long).complete
    steps = read(long.folder)
    assert [m["step"] for m in steps] == list(range(1, 61))
    assert all(m["staleness/max"] <= 1 for m in steps)
    last = steps[-1]
    books = {k.removeprefix("groups_total/"): v for k, v in last.items() if k.startswith("groups_total/")}
    assert books.pop("admitted") == sum(books.values())
    assert books["trained"] == 60 * long.grpo.groups_per_step
