"""A GRPO run that loses its sampler, is stopped by Ctrl-C, then loses its learner and its controller, trains every step
once."""

import json

import pyarrow.parquet as pq
import pytest

from cluster.storage import Folder
from tests.slow.commands import Command, killed_with_its_family
from workflows.grpo import manifest
from workflows.grpo.recorder import training_steps

pytestmark = pytest.mark.timeout(1500)

OURS = ("VLLM", "RolloutSampler", "PolicyLearner", "SearchWorker", "RewardEvaluator", "workflows.cli")
STEPS, GROUPS, SIBLINGS = 40, 2, 4
PATIENCE_S = 600.0  # for anything: a busy machine needs minutes where a quiet one needs seconds


def trajectories(folder, step):
    return folder / f"trajectories/step-{step:06d}.parquet"


def test_a_run_that_loses_its_sampler_and_its_life_trains_every_step_once(prepared, tmp_path):
    run = prepared("chaos")
    grpo = run / "grpo"
    words = [
        "grpo", "--config", "miniature", "run.name=chaos", f"run.storage={run}", f"grpo.steps={STEPS}",
        f"grpo.groups_per_step={GROUPS}", f"grpo.group_size={SIBLINGS}", "grpo.trajectories_per_step=8",
        "grpo.checkpoint_every=2", "grpo.start_check_questions=0", "grpo.probe_every_s=1.0",
    ]  # fmt: skip

    with Command(tmp_path / "first.log", *words) as first:
        first.until(lambda: trajectories(grpo, 3).exists(), PATIENCE_S)
        samplers = first.workers("RolloutSampler")
        assert len(samplers) == 1
        samplers[0].kill()
        first.until(lambda: "sampler-0 is back" in first.said, PATIENCE_S)
        done = newest(grpo)
        first.until(lambda: newest(grpo) > done, PATIENCE_S)
        first.interrupt()
        assert "sampler-0 is fenced" in first.ends_with(130, PATIENCE_S)
    facts = manifest.read(Folder(grpo))
    assert not facts["complete"]
    stopped_after = facts["step"]
    assert done < stopped_after < STEPS - 6

    with Command(tmp_path / "second.log", *words, "--restarts", "3") as second:
        second.until(lambda: newest(grpo) >= stopped_after + 3, PATIENCE_S)
        assert f"continuing after step {stopped_after} of {STEPS}" in second.said
        (learner,) = second.workers("PolicyLearner")
        learner.kill()
        reached = newest(grpo)
        second.until(lambda: newest(grpo) >= reached + 2, PATIENCE_S)
        (controller,) = second.workers("workflows.cli")
        left = killed_with_its_family(controller)  # meanwhile the run begins again
        # of what is ours nothing outlives the controller, engines included; Ray's own agents take their time
        assert not [title for title in left if any(name in title for name in OURS)], left
        said = second.ends_with(0, PATIENCE_S)
    assert "it ended with SIGKILL; again in" in said
    assert "it ended with exit code 1; again in" in said
    assert said.count("continuing after step") == 3
    assert manifest.read(Folder(grpo))["complete"]
    assert_trained_once(grpo)


def newest(grpo):
    """The last step of which episodes were kept; written within the step."""
    names = sorted(path.stem for path in (grpo / "trajectories").glob("step-*.parquet"))
    return int(names[-1].removeprefix("step-")) if names else 0


def assert_trained_once(grpo):
    steps = training_steps(Folder(grpo))
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert [step["version"] for step in steps] == [step["step"] for step in steps]
    assert all(step["staleness/max"] <= 1 for step in steps)
    assert sum(step["since_last_step/episodes/failed_attempts"] for step in steps if has_failures(step)) > 0
    for step in steps:
        books = {k.removeprefix("groups_total/"): v for k, v in step.items() if k.startswith("groups_total/")}
        assert books.pop("admitted") == sum(books.values())
        assert books["trained"] == step["step"] * GROUPS

    trained = []
    for step in range(1, STEPS + 1):
        rows = pq.read_table(trajectories(grpo, step)).to_pylist()
        assert all(row["failure"] in ("none", "policy") and row["reward"] is not None for row in rows)
        trained += [(row["question_id"], row["sample_index"]) for row in rows]
    # the run asks fewer questions than an epoch has, so none comes back by itself
    assert len(trained) == len(set(trained)) == STEPS * GROUPS * SIBLINGS
    assert json.loads((grpo / "export/config.json").read_text())["architectures"]


def has_failures(step):
    return "since_last_step/episodes/failed_attempts" in step
