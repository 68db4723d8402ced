"""`mmsearch bench chaos` for three minutes: every kind of process of a run dies, and every step is trained once."""

import json

import pytest

from cluster.storage import Folder
from tests.slow.commands import Command
from workflows.bench.chaos import FOLDER
from workflows.bench.chaos_kills import STEPS_LOST, VICTIMS
from workflows.grpo import manifest
from workflows.grpo.recorder import training_steps

PATIENCE_S = 1500.0  # a busy machine needs minutes where a quiet one needs seconds
pytestmark = pytest.mark.timeout(PATIENCE_S + 100)


def test_a_run_that_loses_every_kind_of_its_processes_trains_every_step_once(prepared, tmp_path):
    run = prepared("chaos")
    words = [
        "bench", "chaos", "--config", "miniature", "--minutes", "3", "--every", "5", "--json",
        "run.name=chaos", f"run.storage={run}", "grpo.groups_per_step=2", "grpo.group_size=4",
    ]  # fmt: skip
    with Command(tmp_path / "log", *words) as chaos:
        chaos.ends_with(0, PATIENCE_S)  # the bench itself looks for what must not be, and would end with 1
    found = Folder(run / FOLDER).read_json("results.json")
    assert found["problems"] == []
    assert {kill["victim"] for kill in found["kills"]} == {victim.name for victim in VICTIMS}
    assert all(kill["repeated"] <= STEPS_LOST and kill["left"] == [] for kill in found["kills"])
    # whether the targets are reached depends on the machine, that they are judged does not
    assert all(kill["late"] == (kill["whole_s"] > kill["bound_s"]) for kill in found["kills"])
    assert isinstance(found["speed_reached"], bool)
    assert found["exit_code"] == 130

    said = (run / FOLDER / "log.txt").read_text(errors="replace")
    for sentence in ("sampler-0 is fenced", "it ended with SIGKILL; again in", "it ended with exit code 1; again in"):
        assert sentence in said
    steps = training_steps(Folder(run / FOLDER))
    assert len(steps) == found["steps"] >= len(found["kills"])
    assert sum(step.get("since_last_step/episodes/failed_attempts", 0) for step in steps) > 0
    stopped = manifest.read(Folder(run / FOLDER))  # stopped as by Ctrl-C, in good order
    assert (stopped["complete"], stopped["step"]) == (False, len(steps))
    newest = max((run / FOLDER / "checkpoints").iterdir())
    assert json.loads((newest / "controller.json").read_text())["step"] == len(steps)
