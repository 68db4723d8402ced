"""A rank's memory by engine and stage, worked by hand for 1000 parameters; reality is in tests/integration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.learner.settings import BackendSettings, OptimizerSettings
from workflows.capacity.activations import Pass
from workflows.capacity.memory import Memory
from workflows.capacity.rank_memory import (
    MAX_LIVE,
    REDUCE_BUCKET,
    Reference,
    buckets,
    rank_memory,
    states,
    step_scratch,
)

WORK = Pass(tokens=100, trained=50, pictures=20)


def backend(kind="deepspeed", stage=2, precision="bf16", checkpointing=False) -> BackendSettings:
    return BackendSettings(
        kind=kind, zero_stage=stage, precision=precision, activation_checkpointing=checkpointing,
        optimizer=OptimizerSettings(),
    )  # fmt: skip


def memory(shape, reference=None, work=WORK, ranks=4, **of) -> Memory:
    return rank_memory(shape, backend(**of), ranks, work, reference=reference or Reference(), capacity=10**6, reserve=7)


@pytest.mark.parametrize(
    ("kind", "stage", "precision", "expected"),
    [
        ("plain", 0, "bf16", (2000, 6000, 4000, 8000)),
        ("plain", 0, "fp32", (4000, 8000, 4000, 8000)),
        ("deepspeed", 0, "bf16", (2000, 2000, 4000, 8000)),
        ("deepspeed", 0, "fp32", (4000, 4000, 0, 8000)),
        ("deepspeed", 1, "bf16", (2000, 6000, 1000, 2000)),
        ("deepspeed", 1, "fp32", (4000, 5000, 1000, 2000)),
        ("deepspeed", 2, "bf16", (2000, 1000, 1000, 2000)),
        ("deepspeed", 3, "bf16", (500, 1000, 1000, 2000)),
        ("deepspeed", 3, "fp32", (1000, 1000, 1000, 2000)),
    ],
)
def test_states_of_1000_parameters_on_4_ranks(shape, kind, stage, precision, expected):
    found = states(shape, backend(kind, stage, precision), 4)
    assert (found.weights, found.gradients, found.masters, found.adam) == expected


def test_frozen_parameters_are_held_without_gradient_and_optimizer(shape):
    text_only = replace(shape, trained=replace(shape.trained, vision=0, projector=0))
    found = states(text_only, backend(stage=2), 4)
    assert (found.weights, found.gradients, found.masters, found.adam) == (2000, 880, 880, 1760)


def test_adapters_alone_are_learned_and_all_is_held(shape):
    nothing = replace(shape.trained, vision=0, projector=0, language=0, embeddings=0)
    lora = replace(shape, trained=nothing, adapters=40)
    found = states(lora, backend(stage=3), 4)
    assert (found.weights, found.gradients, found.masters, found.adam) == (520, 40, 40, 80)


def test_buckets_are_no_larger_than_what_is_learned(shape):
    assert buckets(shape, backend(stage=2), 4) == 2 * (1000 + 40)
    large = replace(shape, parts=replace(shape.parts, language=10**9), trained=replace(shape.trained, language=10**9))
    assert buckets(large, backend(stage=2), 4) == 2 * (REDUCE_BUCKET + large.largest)
    assert buckets(shape, backend(stage=1), 4) == 4 * 1000
    assert buckets(shape, backend(stage=1), 1) == buckets(shape, backend(kind="plain"), 4) == 0


def test_the_sizes_of_deepspeeds_buckets_are_deepspeeds():
    from actors.learner.backends.deepspeed import engine_config
    from actors.learner.backends.ranks import Ranks

    zero_config = pytest.importorskip("deepspeed.runtime.zero.config")
    for stage in (1, 2, 3):
        given = engine_config(backend(stage=stage), Ranks(0, 2), trained=10**9)["zero_optimization"]
        config = zero_config.DeepSpeedZeroConfig(**given)
        assert config.reduce_bucket_size == REDUCE_BUCKET
        assert config.max_live_parameters == MAX_LIVE
        assert config.contiguous_gradients  # else there is no bucket
        few = engine_config(backend(stage=stage), Ranks(0, 2), trained=40)["zero_optimization"]
        assert few["reduce_bucket_size"] == 40


def test_stage_3_gathers_no_more_than_there_is(shape):
    assert memory(shape, stage=3).bytes_of("gathered weights") == 2000
    assert memory(shape, stage=2).bytes_of("gathered weights") == 0


def test_stage_3_has_the_whole_model_on_each_gpu_before_it_is_parted(shape):
    held = 10 * MAX_LIVE  # of which stage 3 gathers no more than a tenth at a time
    large = replace(shape, parts=replace(shape.parts, language=held), trained=replace(shape.trained, language=0))
    found = memory(large, stage=3, ranks=64, work=Pass(0, 0, 0))
    assert (found.moment, found.total) == ("the start", 2 * large.held + 7)
    assert memory(large, stage=2, ranks=64, work=Pass(0, 0, 0)).moment != "the start"
    assert memory(shape, stage=3).moment == "the backward pass"


def test_the_fullest_moment_decides(shape):
    assert memory(shape).moment == "the backward pass"
    idle = memory(shape, work=Pass(0, 0, 0), ranks=1, stage=0)
    assert (idle.moment, idle.bytes_of("gradients in fp32")) == ("the optimizer's step", 4000)
    assert step_scratch(shape, backend(stage=2), 4) == 1000
    assert step_scratch(shape, backend(kind="plain"), 4) == step_scratch(shape, backend(stage=1), 4) == 0


def test_a_reference_is_a_second_copy_and_offloaded_only_there_for_its_pass(shape):
    without, with_it = memory(shape), memory(shape, Reference(held=True))
    assert with_it.total - without.total == with_it.bytes_of("reference") == 2000
    offloaded = memory(shape, Reference(held=True, offloaded=True))
    assert offloaded.total == without.total
    forward_heavy = memory(replace(shape, parts=replace(shape.parts, language=10**6)), Reference(True, True), stage=2)
    assert forward_heavy.moment == "the reference's pass"
    assert forward_heavy.bytes_of("reference") == 2 * (10**6 + 200)


def test_what_is_missing_is_what_is_beyond_the_capacity(shape):
    found = memory(shape)
    assert found.missing == 0
    assert replace(found, capacity=found.total - 5).missing == 5
    assert replace(found, capacity=None).missing == 0
    assert found.bytes_of("reserve") == 7
