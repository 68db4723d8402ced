"""A tool, a reward, a model and data of one's own, as the README shows them, in a GRPO run and a dataset."""

from __future__ import annotations

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from actors.agent.trajectory import Outcome
from actors.reward.score import combined
from tests.slow.commands import ROOT, Command
from workflows.grpo.records import trajectory_from
from workflows.settings import load

README = (ROOT / "README.md").read_text().partition("## Bring your own")[2]
PARTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
TOOL, REWARD = 'search.image=[{path: "parts:MySearch"}]', "reward.function=parts:reward"
SOURCE = "dataset.source=workflows.dataset.fvqa:ParquetSource"
SMALL = (
    "grpo.steps=1", "grpo.groups_per_step=8", "grpo.group_size=4", "grpo.trajectories_per_step=64",
    "grpo.start_check_questions=0",
)  # fmt: skip


@pytest.fixture
def mine(prepared, tmp_path):
    """A folder of one's own with the README's parts, a model and questions, apart from any run."""
    run = prepared("run")
    folder = tmp_path / "mine"
    shutil.copytree(run / "sft/export", folder / "model")
    shutil.copytree(run / "dataset/questions", folder / "questions")
    (folder / "parts.py").write_text(PARTS)
    return folder


def test_the_readmes_parts_are_used_in_training(mine, tmp_path):
    assert all(word in COMMANDS for word in (TOOL, REWARD, "grpo.start_from=", SOURCE))
    words = [f"run.storage={tmp_path / 'run'}", f"grpo.start_from={mine / 'model'}", TOOL, REWARD, *SMALL]
    with Command(tmp_path / "log", "grpo", "--config", "miniature", *words, cwd=mine) as grpo:
        grpo.ends_with(0, 300)
    rows = [row for file in (tmp_path / "run/grpo/trajectories").iterdir() for row in pq.read_table(file).to_pylist()]
    played = [trajectory_from(json.loads(row["record"])) for row in rows]
    rule = load("miniature").reward.rule()
    for trajectory in played:
        parts, tokens = trajectory.reward, trajectory.sampled_tokens
        formula = combined(parts.accuracy, bool(parts.format), parts.searches, rule)
        assert parts.total == pytest.approx(formula.total - 0.001 * tokens)
    looked = [call.result for it in played for call in it.tool_calls if call.result.outcome is Outcome.OK]
    assert looked
    assert {evidence.text for result in looked for evidence in result.evidence} == {"what the page says"}


def test_data_of_ones_own_becomes_a_dataset(mine, tmp_path):
    shutil.copytree(tmp_path / "run/blobs", tmp_path / "other/blobs")  # its rows name pictures by content
    kwargs = f"dataset.kwargs={{train: {mine / 'questions/train'}, test: {mine / 'questions/test'}}}"
    words = [f"run.storage={tmp_path / 'other'}", SOURCE, kwargs, "dataset.conversations=0"]
    with Command(tmp_path / "log", "dataset", "build", "--config", "miniature", *words, cwd=mine) as build:
        build.ends_with(0, 300)
    for split in ("train", "test"):
        there, here = (
            pq.read_table(folder / split) for folder in (mine / "questions", tmp_path / "other/dataset/questions")
        )
        assert sorted(here["data_id"].to_pylist()) == sorted(there["data_id"].to_pylist())
