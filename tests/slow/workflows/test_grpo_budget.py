"""A GRPO run whose search budget ends in the middle: it says what the rest needs, and goes on where it was."""

import json
import re

import pyarrow.parquet as pq
import pytest

from actors.agent.trajectory import Failure, Outcome
from cluster.storage import Folder
from tests.slow.commands import Command
from workflows.grpo import manifest
from workflows.grpo.checkpoint import CONTROLLER, GROUPS, MARKER
from workflows.grpo.recorder import training_steps
from workflows.grpo.records import trajectory_from

pytestmark = pytest.mark.timeout(1500)

STEPS, GROUPS_PER_STEP, SIBLINGS = 16, 2, 4
BUDGET = 24  # of some five requests a step, the first ones for more groups than one step has
PATIENCE_S = 600.0  # a busy machine needs minutes where a quiet one needs seconds


@pytest.fixture
def run(prepared):
    return prepared("budget")


def settings(run, requests):
    """Every question needs a search by picture, and every picture takes one of `requests` a day."""
    lens = (
        f"{{path: workflows.embedded.search:EmbeddedImageSearch, name: lens, kwargs: {{folder: {run / 'world'}}},"
        f" quota: {{per_day: {{requests: {requests}}}}}}}"
    )
    return [
        "run.name=budget", f"run.storage={run}", f"search.image=[{lens}]", f"grpo.steps={STEPS}",
        f"grpo.groups_per_step={GROUPS_PER_STEP}", f"grpo.group_size={SIBLINGS}", "grpo.search_free=0.0",
        "grpo.trajectories_per_step=8", "grpo.start_check_questions=0", "grpo.evaluation.every=0",
        "grpo.checkpoint_every=100",
    ]  # fmt: skip


def test_a_run_whose_budget_is_spent_says_what_it_needs_and_continues_with_more(run, tmp_path):
    with Command(tmp_path / "poor.log", "grpo", "--config", "miniature", *settings(run, BUDGET)) as poor:
        said = poor.ends_with(2, PATIENCE_S)
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert f"lens: the budget of {BUDGET} requests a day (per_day.requests) is spent" in last
    estimate = re.search(
        r"A step takes about ([\d.]+) requests of lens, so the ([\d.]+) steps that are left need about (\d+) more:"
        r" start again with per_day\.requests at (\d+)",
        last,
    )
    assert estimate, last
    per_step, left, more, needed = map(float, estimate.groups())
    assert per_step <= BUDGET
    assert 0 < left < STEPS
    assert more > 0
    assert needed >= BUDGET + more
    (checkpoint,) = (run / "grpo/checkpoints").iterdir()
    assert (checkpoint / MARKER).exists()
    stopped_after = json.loads((checkpoint / CONTROLLER).read_text())["step"]
    assert 0 < stopped_after < STEPS
    waiting = pq.read_table(checkpoint / GROUPS)["trajectory"].to_pylist()
    assert_unharmed([trajectory_from(json.loads(text)) for text in waiting])

    with Command(tmp_path / "rich.log", "grpo", "--config", "miniature", *settings(run, 100 * BUDGET)) as rich:
        said = rich.ends_with(0, PATIENCE_S)
    assert f"continuing after step {stopped_after} of {STEPS}" in said
    assert manifest.read(Folder(run / "grpo"))["complete"]
    assert [step["step"] for step in training_steps(Folder(run / "grpo"))] == list(range(1, STEPS + 1))
    trained = [episode for step in range(1, STEPS + 1) for episode in episodes(run, step)]
    assert_unharmed(trained)
    assert len({(it.question_id, it.sample_index) for it in trained}) == STEPS * GROUPS_PER_STEP * SIBLINGS
    assert any(it.searches for it in trained)

    with Command(tmp_path / "quota.log", "quota", "--json", "--config", "miniature", *settings(run, BUDGET)) as quota:
        rows = json.loads(quota.ends_with(0, PATIENCE_S))
    assert next(row["requests"] for row in rows if row["window"] == "month") > BUDGET  # of both parts


def episodes(run, step):
    rows = pq.read_table(run / f"grpo/trajectories/step-{step:06d}.parquet").to_pylist()
    return [trajectory_from(json.loads(row["record"])) for row in rows]


def assert_unharmed(trajectories):
    """None of them met the refusal, and none is scored for a failure of the world."""
    for trajectory in trajectories:
        assert trajectory.reward is not None
        assert trajectory.failure in (Failure.NONE, Failure.POLICY)
        assert not trajectory.refused
        assert all(call.result.outcome is not Outcome.REFUSED for call in trajectory.tool_calls)
