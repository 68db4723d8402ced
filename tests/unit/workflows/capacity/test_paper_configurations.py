"""The configurations of the papers' runs: coherent, the papers' values, and within the hardware that they name."""

from __future__ import annotations

import functools
import math

import pytest

from actors.learner.schedule import learning_rate
from actors.reward.settings import RewardPreset
from workflows import settings
from workflows.capacity.advice import problems
from workflows.capacity.hardware import Hardware
from workflows.capacity.memory import GIB
from workflows.capacity.stages import LOCAL_FOLDER, Assumptions, plan, stages_of
from workflows.grpo.plan import plan_of

PAPERS = ["mmsearch_r1_7b", "deepmmsearch_r1_7b", "mmsearch_r1_qwen3vl_8b", "deepmmsearch_r1_qwen3vl_8b"]
load = functools.cache(settings.load)
STATED = Hardware(gpu=int(79.6 * GIB), gpus_per_node=8, nodes=4)  # an H100 calls itself 81,559 MiB


@pytest.mark.parametrize("name", PAPERS)
def test_every_stage_fits_the_hardware_that_the_papers_had(name):
    loaded = load(name)
    for stage in stages_of(loaded):
        found = plan(loaded, stage, STATED, Assumptions())
        assert problems(found, STATED) == []
        assert set(found.warnings) <= {LOCAL_FOLDER}  # where its folder goes is the run's to say


@pytest.mark.parametrize("name", [*PAPERS, "gpu_nodes"])
def test_parts_fit_each_other(name, tmp_path):
    loaded = settings.load(name, [f"run.storage={tmp_path}"])
    made = plan_of(loaded)
    made.check()
    assert loaded.agent.limits.max_total_tokens <= loaded.engine.max_model_len
    assert loaded.grpo.max_tokens <= loaded.agent.limits.max_turn_tokens
    assert loaded.grpo.sampler_gpus == loaded.engine.tensor_parallel_size


@pytest.mark.parametrize("name", PAPERS)
def test_nothing_of_the_embedded_scale_is_left(name):
    """All of them extend web, which extends embedded."""
    loaded, tiny = load(name), load("embedded")
    assert loaded.learner.objective.aggregation == "token_mean" != tiny.learner.objective.aggregation
    assert loaded.learner.backend.optimizer.lr == 2e-6
    assert (loaded.grpo.temperature, loaded.grpo.max_tokens, loaded.evaluate.max_tokens) == (1.0, 2048, 2048)
    assert loaded.search.top_k == 5
    assert loaded.learner.threads == 0
    assert all("embedded" not in provider.path for provider in loaded.search.endpoints())
    assert "embedded" not in loaded.dataset.source


def test_mmsearch_r1_holds_its_papers_values():
    s = load("mmsearch_r1_7b")
    assert (s.grpo.groups_per_step, s.grpo.group_size, s.learner.steps_per_batch) == (512, 8, 4)
    assert (s.learner.objective.clip_low, s.learner.objective.clip_high) == (0.2, 0.2)
    assert (s.learner.objective.kl, s.learner.objective.kl_coef) == ("k3", 0.001)
    assert s.learner.advantage == "mean_std"
    preset, rule = s.agent.protocol, s.reward.rule()
    assert (preset.max_turns, preset.max_image_searches, preset.max_text_searches) == (3, 1, 2)
    assert (rule.format_weight, rule.search_penalty, rule.penalty_per.value) == (0.1, 0.1, "episode")
    assert s.agent.limits.max_total_tokens == 4096 + 8192
    assert s.engine.images_per_prompt == 1 + s.search.top_k
    assert s.pictures.given == {"max_pixels": 2 * 672 * 672}
    assert not s.learner.freeze
    assert not s.grpo.filter_zero_variance


@pytest.mark.parametrize("name", PAPERS)
def test_the_rate_holds_for_45_batches_and_then_decays_as_the_script_does(name):
    """Papers, section 5: about 1.05e-6 at batch 45, 5.7e-7 at 50, 1e-7 at the end."""
    learner = load(name).learner
    rates = [learning_rate(batch * learner.steps_per_batch, learner.backend.optimizer) for batch in (0, 45, 50, 200)]
    assert rates[0] == pytest.approx(2e-6, rel=1e-3)
    assert rates[1] == pytest.approx(1.05e-6, rel=1e-3)
    assert rates[2] == pytest.approx(2e-6 * (0.95 / (1 + math.exp(5 / 4.5)) + 0.05), rel=1e-6)
    assert rates[3] == pytest.approx(1e-7, rel=1e-3)


def test_deepmmsearch_r1_holds_its_papers_values():
    s = load("deepmmsearch_r1_7b")
    assert (s.sft.lr, s.sft.batch, s.sft.ranks, s.sft.schedule) == (1e-4, 8, 8, "cosine")
    assert s.sft.freeze == ["vision", "projector"]
    assert s.sft.lora is not None
    assert (s.sft.lora.rank, s.sft.lora.targets) == (8, [])
    assert s.sft.max_length == s.sft.micro_batch_tokens == 12288
    assert s.sft.steps * s.sft.batch == 3 * 10_000
    assert s.sft.warmup_steps == 0.1 * s.sft.steps
    assert s.learner.advantage == "mean"
    assert (s.reward.preset, s.reward.rule().search_penalty) == (RewardPreset.DEEPMMSEARCH_R1, 0.0)
    preset = s.agent.protocol
    assert (preset.max_tool_calls, preset.max_image_searches, preset.grammar.crops) == (10, 1, True)
    assert (s.grpo.groups_per_step, s.grpo.steps, s.grpo.start_from) == (512, 30 * 9, None)
    assert s.engine.images_per_prompt == 1
    assert s.search.grounder is not None


def test_qwen3_differs_from_the_papers_runs_in_its_model_and_what_it_has_room_for():
    for paper in ("mmsearch_r1", "deepmmsearch_r1"):
        seven, eight = (load(f"{paper}_{model}") for model in ("7b", "qwen3vl_8b"))
        assert seven.learner == eight.learner
        assert seven.reward == eight.reward
        assert seven.agent == eight.agent
        assert seven.pictures == eight.pictures
        assert "Qwen3-VL-8B" in str(eight.grpo.start_from or eight.sft.start_from)
        assert eight.grpo.most_per_sampler < seven.grpo.most_per_sampler
