"""The whole pipeline in miniature, as `mmsearch demo` runs it: every stage real, and reward rises."""

import json
from statistics import mean

import pytest

from cluster.storage import Folder
from workflows.demo import STAGES
from workflows.grpo import manifest
from workflows.grpo.recorder import training_steps
from workflows.settings import load

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def steps(miniature):
    return training_steps(Folder(miniature.folder / "grpo"))


def test_every_stage_ends_and_leaves_what_the_next_one_needs(miniature):
    facts = json.loads((miniature.folder / "demo.json").read_text())
    print(f"the miniature took {miniature.seconds:.0f} s: {facts}")
    assert facts["seconds"].keys() == {stage.name for stage in STAGES}
    assert facts["reused"] == []
    for stage in STAGES:
        assert all((miniature.folder / output).exists() for output in stage.outputs)


def mean_reward(steps):
    """Over every episode that was sampled, those of filtered groups included."""
    counted = [step for step in steps if "sampled/episodes" in step]
    episodes = sum(step["sampled/episodes"] for step in counted)
    return sum(step["sampled/reward/mean"] * step["sampled/episodes"] for step in counted) / episodes


def test_reward_rises(steps):
    assert len(steps) == load("miniature").grpo.steps
    half = len(steps) // 2  # some 1,400 episodes each, so that chance alone makes a difference of 0.02
    first, last = mean_reward(steps[:half]), mean_reward(steps[-half:])
    print(f"reward: {first:.3f} over the first half of the steps, {last:.3f} over the second")
    assert last > first + 0.04


def test_every_group_is_accounted_for(miniature, steps):
    settings = load("miniature").grpo
    for step in steps:
        books = {k.removeprefix("groups_total/"): v for k, v in step.items() if k.startswith("groups_total/")}
        assert books.pop("admitted") == sum(books.values())
        assert books["trained"] == step["step"] * settings.groups_per_step
        assert step["staleness/max"] <= settings.max_staleness
        assert step["episodes/masked"] == 0
    facts = manifest.read(Folder(miniature.folder / "grpo"))
    assert (facts["complete"], facts["step"], facts["questions_dropped"]) == (True, settings.steps, 0)


def test_the_real_tools_were_searched_with(steps):
    assert mean(step["search/calls"] for step in steps) > 0
    assert mean(step["episodes/tool_seconds"] for step in steps) > 0


def test_reinforcement_is_better_than_its_start_on_what_was_never_trained_on(miniature):
    results = json.loads((miniature.folder / "evaluate/results.json").read_text())
    overall = {arm: results["arms"][arm]["overall"] for arm in ("rag", "sft", "rl")}
    print({arm: (numbers["exact_match"], numbers["reward"]) for arm, numbers in overall.items()})
    assert all(numbers["failed"] == 0 for numbers in overall.values())
    assert overall["rl"]["reward"] > overall["sft"]["reward"]
