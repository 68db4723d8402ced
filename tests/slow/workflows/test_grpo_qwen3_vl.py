"""GRPO of a tiny Qwen3-VL in bf16, every part real: what changes with another family and with bounds of pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoImageProcessor

from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS
from actors.learner.settings import BackendSettings, LearnerSettings, OptimizerSettings
from actors.model.load import check_model_folder, load_policy
from actors.model.settings import PictureSettings
from actors.model.tiny import QWEN3, save_tiny
from actors.reward.settings import RewardSettings
from cluster.telemetry import read
from tests.integration.workflows.test_grpo_run import plan
from workflows.grpo.run import train

__all__ = ["plan"]  # the fixture: a run of a tiny Qwen2.5-VL that has not been made
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_run_of_qwen3_vl_under_bounds_ends_with_a_model_that_moved(plan, tmp_path):
    texts = [preset.opening + preset.after_image + preset.after_text for preset in PRESETS.values()]
    size = replace(QWEN3, initializer_range=0.03)  # untrained weights of the default scale magnify bf16's rounding
    model = save_tiny(texts, tmp_path / "model", tags=TAGS, size=size, seed=1)
    backend = BackendSettings(precision="bf16", zero_stage=1, optimizer=OptimizerSettings(lr=1e-3))
    wanted = replace(
        plan,
        name=f"qwen3-{tmp_path.name}",
        folder=plan.folder / "qwen3",
        model=str(model),
        pictures=PictureSettings(max_pixels=96 * 96),
        engine=replace(plan.engine, dtype="bfloat16"),
        learner=LearnerSettings(max_length=512, micro_batch_tokens=4096, threads=1, backend=backend),
        reward=RewardSettings(function="tests.slow.workflows.rewards:by_turns"),
        grpo=replace(plan.grpo, steps=3, export="last", max_staleness=0),
    )
    assert train(wanted).complete
    steps = [line for line in read(wanted.folder) if "eval/version" not in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["learner/skipped"] == 0
        assert line["learner/tokens"] > 0
        assert line["learner/mismatch_abs"] <= 5e-3  # of samples that are never a version old, in bf16
    export = wanted.folder.local_path / "export"
    check_model_folder(export)
    assert AutoImageProcessor.from_pretrained(export).size["longest_edge"] == 96 * 96
    before, after = (dict(load_policy(folder, "bfloat16").named_parameters()) for folder in (model, export))
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["model.visual.deepstack_merger_list.0.linear_fc1.weight"],
        after["model.visual.deepstack_merger_list.0.linear_fc1.weight"],
    )
