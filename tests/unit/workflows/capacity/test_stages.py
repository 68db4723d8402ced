"""From settings to a plan."""

from __future__ import annotations

import functools
import json

import pytest

from actors.model.pixels import CACHE_BYTES
from cluster.errors import UserError
from workflows import settings
from workflows.capacity.hardware import Hardware
from workflows.capacity.known import KNOWN
from workflows.capacity.memory import GIB
from workflows.capacity.stages import LOCAL_FOLDER, Assumptions, StagePlan, model_of, plan, stages_of

PAPER = "mmsearch_r1_7b"
WEIGHTS = 2 * 8_292_166_656  # bytes of its model
SHARED = "run.storage=s3://runs/one"
H100 = Hardware(gpu=80 * GIB)
load = functools.cache(settings.load)


def planned(*words: str, config: str = PAPER, stage: str = "grpo", hardware: Hardware = H100, **assumed) -> StagePlan:
    return plan(load(config, (SHARED, *words)), stage, hardware, Assumptions(**assumed))


def test_the_stages_are_those_that_the_run_goes_through():
    assert stages_of(load(PAPER)) == ["grpo"]
    assert stages_of(load("deepmmsearch_r1_7b")) == ["sft", "grpo"]


def test_a_stage_is_planned_for_the_model_that_it_starts_from(tmp_path):
    run = f"run.storage={tmp_path}"
    assert model_of(settings.load(PAPER, [run]), "grpo") == "models/Qwen2.5-VL-7B-Instruct"
    deep = settings.load("deepmmsearch_r1_7b", [run])
    assert model_of(deep, "sft") == model_of(deep, "grpo") == "models/Qwen2.5-VL-7B-Instruct"
    with pytest.raises(UserError, match="There is no model to plan for"):
        model_of(settings.load("embedded", [run]), "grpo")
    for made in ("base", "sft/export"):
        (tmp_path / made).mkdir(parents=True)
        (tmp_path / made / "config.json").write_text(json.dumps(KNOWN["qwen2.5-vl-3b"].config))
    assert model_of(settings.load("embedded", [run]), "sft") == str(tmp_path / "base")
    assert model_of(deep, "grpo") == str(tmp_path / "sft/export")


def test_tokens_of_a_step_are_episodes_times_their_length():
    found = planned(mean_tokens=3000).tokens
    assert (found.sequences, found.expected, found.most) == (4096, 4096 * 3000, 4096 * 12288)
    assert found.passes == -(-4096 * 3000 // (16 * 12288))
    assert found.tool_calls == 4096 * 2
    assert found.publish_bytes == 2 * 8_292_166_656
    assert found.in_flight == 16 * 128
    assert planned().tokens.expected == 4096 * 6144  # half of the longest
    assert planned("grpo.samplers=1000").tokens.in_flight == 2 * 512 * 8  # never more than there are slots for


def test_weights_that_would_have_to_leave_the_node_by_shared_memory_are_warned_of():
    several = planned("learner.publish.transport=shared_memory")
    assert len(several.nodes) > 1
    assert "ends at the learner's" in several.warnings[-1]
    assert not any("shared_memory" in told for told in planned().warnings)
    one = planned("learner.publish.transport=shared_memory", "grpo.ranks=4", "grpo.samplers=4")
    assert len(one.nodes) == 1
    assert not any("shared_memory" in told for told in one.warnings)


def test_a_folder_that_only_one_of_several_nodes_sees_is_warned_of(tmp_path):
    local = f"run.storage={tmp_path}"
    assert planned(local).warnings == (LOCAL_FOLDER,)
    assert planned().warnings == ()
    assert planned(local, "grpo.ranks=4", "grpo.samplers=4").warnings == ()
    wide = ("sft.ranks=9", "sft.batch=9")
    assert planned(local, *wide, config="deepmmsearch_r1_7b", stage="sft").warnings == (LOCAL_FOLDER,)


def test_every_sampler_of_a_node_lands_its_own_copy_in_shared_memory():
    def landed(*words: str, **node: int) -> StagePlan:
        return planned(*words, "learner.objective.kl=none", hardware=Hardware(gpu=80 * GIB, **node))

    found = landed(shm=100 * GIB)  # samplers have nodes of their own
    assert (found.shared.bytes_of("weights landed"), found.shared.bytes_of("published weights")) == (
        8 * WEIGHTS,
        WEIGHTS,
    )
    assert found.shared.missing == 9 * WEIGHTS - 100 * GIB
    assert found.host.bytes_of("weights landed") == 8 * WEIGHTS  # it is the host's memory, too
    assert landed("learner.publish={transport: storage, address: s3://w}").shared.total == 8 * WEIGHTS
    one = ("grpo.ranks=4", "grpo.samplers=4")
    assert landed(*one).shared.total == (2 + 4) * WEIGHTS
    assert landed(*one, "learner.publish.transport=shared_memory").shared.total == 3 * WEIGHTS
    assert landed("learner.publish.transport=nccl", "engine.nccl_updates=true").shared.total == 0
    assert landed(shm=None).shared.missing == 0


def test_nodes_are_as_many_as_their_cpus_ask_for():
    assert len(planned().nodes) == 4
    assert len(planned(hardware=Hardware(gpu=80 * GIB, cpus_per_node=16)).nodes) == 9  # four ranks or samplers on each
    with pytest.raises(UserError, match=r"A learner rank needs 4 CPUs of one node, and a node has 2"):
        planned(hardware=Hardware(gpu=80 * GIB, cpus_per_node=2))


def test_a_pass_is_at_least_as_long_as_the_longest_episode():
    short = planned("learner.micro_batch_tokens=1024", "learner.objective.kl=none")
    assert short.learner.bytes_of("logits") == 12 * 152_064 * 12288
    half = planned("learner.objective.kl=none", trained_share=0.5)
    assert half.learner.bytes_of("logits") == 6 * 152_064 * 12288


def test_pictures_are_bounded_by_the_processor_or_by_who_knows_better():
    def of_pictures(*words: str, **assumed: int) -> int:
        return planned("learner.objective.kl=none", *words, **assumed).learner.bytes_of("activations, pictures")

    unbounded = of_pictures("pictures.max_pixels=null")
    assert unbounded > 4 * GIB  # six of 16,384 tokens: nothing but pictures
    assert of_pictures() == of_pictures("pictures.max_pixels=null", picture_tokens=1152) < 3 * GIB  # as configured
    assert of_pictures("pictures.max_pixels=100000") < of_pictures()


def test_a_reference_is_held_only_where_kl_needs_one():
    assert planned("learner.objective.reference_offload=false").learner.bytes_of("reference") == 2 * 8_292_166_656
    assert planned("learner.objective.kl=none").host.bytes_of("references") == 0
    running = planned("learner.objective.reference_offload=true").host
    assert running.moment == "the start"  # eight ranks read the model and its reference
    assert running.total == 8 * 2 * 2 * 8_292_166_656


def test_the_pictures_that_ranks_keep_are_counted_on_the_host():
    found = planned("learner.objective.kl=none", "grpo.learner_gpus=0", "grpo.ranks=2")
    assert found.host.bytes_of("pictures") == 2 * CACHE_BYTES


def test_the_papers_cast_is_placed():
    found = planned()
    roles = {some.role: (some.count, some.gpus) for some in found.actors}
    assert roles == {"learner rank": (16, 1), "sampler": (16, 1), "search worker": (8, 0), "reward evaluator": (4, 0)}
    assert len(found.nodes) == 4


def test_a_sampler_is_given_the_gpus_that_share_its_engine():
    with pytest.raises(UserError, match=r"grpo.sampler_gpus is 1 and engine.tensor_parallel_size is 2"):
        planned("engine.tensor_parallel_size=2")
    two = planned("engine.tensor_parallel_size=2", "grpo.sampler_gpus=2", "grpo.samplers=8")
    assert len(two.nodes) == 4


def test_a_cache_that_is_too_small_for_all_is_warned_of():
    assert planned().warnings == ()
    (warning,) = planned("grpo.episodes_per_sampler=200", "engine.max_num_seqs=200").warnings
    assert "holds 146 episodes of 6,144 tokens, and 200 are to be played at once" in warning


def test_sft_reads_its_model_in_its_own_precision_and_trains_its_adapters_alone():
    found = planned(config="deepmmsearch_r1_7b", stage="sft")
    assert found.shape.trained.total == 0
    assert found.shape.learned == found.shape.adapters == 20_185_088
    assert found.training.backend.activation_checkpointing
    assert found.host.total == 8 * 2 * 8_292_166_656
    assert (found.sampler, found.kv, found.tokens.sequences) == (None, None, 8)
    whole = planned("sft.precision=fp32", config="deepmmsearch_r1_7b", stage="sft")
    assert whole.host.total == 8 * 4 * 8_292_166_656


def test_sft_without_adapters_freezes_what_it_is_told():
    found = planned("sft.lora=null", "sft.freeze=[vision]", config="deepmmsearch_r1_7b", stage="sft")
    assert found.shape.trained.vision == found.shape.adapters == 0
    assert found.shape.trained.projector > 0
    assert found.shape.trained.language > 0


def test_without_gpus_everything_is_in_the_hosts_memory():
    cpu = Hardware(gpu=80 * GIB, host=16 * GIB)
    found = planned("grpo.learner_gpus=0", "grpo.sampler_gpus=0", "grpo.ranks=2", "grpo.samplers=3", hardware=cpu)
    assert found.learner.capacity == 16 * GIB
    assert found.host.bytes_of("learner ranks") == 2 * found.learner.total
    assert found.host.bytes_of("samplers") == 3 * found.sampler.total
    assert found.host.missing > 0
    assert found.learner.bytes_of("reserve") == 0
