"""What is said when something does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.learner.settings import BackendSettings
from actors.sampler.settings import EngineSettings
from cluster.errors import UserError
from workflows.capacity.advice import learner_helps, sampler_helps
from workflows.capacity.memory import Item, Memory, amount, gib
from workflows.capacity.rank_memory import Reference
from workflows.capacity.stages import Training


@pytest.fixture
def training() -> Training:
    return Training(
        backend=BackendSettings(zero_stage=1),
        ranks=8,
        cpus=1.0,
        gpus=1.0,
        micro_batch_tokens=16384,
        longest=8192,
        pictures=1,
        freeze=(),
        lora=None,
        reference=Reference(held=True),
        read_in=2,
    )


def of(needed: int) -> Memory:
    return Memory("a learner rank", 100, "full", (Item("logits", needed - 1), Item("weights", 1)))


def test_each_change_that_is_enough_by_itself_is_named_in_its_mildest_form(training):
    def again(t: Training) -> Memory:
        return of(50 if t.backend.zero_stage >= 2 or t.ranks >= 16 else 150)

    assert learner_helps(training, again) == "any of these alone would do: ZeRO 2, 16 ranks"


def test_every_kind_of_change_is_tried(training):
    seen: list[Training] = []
    learner_helps(training, lambda t: seen.append(t) or of(50))
    assert any(t.backend.activation_checkpointing for t in seen)
    assert any(t.reference.offloaded for t in seen)
    assert any(t.lora is not None and not t.reference.held for t in seen)
    assert {t.micro_batch_tokens for t in seen} == {16384, 8192}  # never below what one sequence may have
    assert {t.backend.zero_stage for t in seen} == {1, 2, 3}
    assert {t.ranks for t in seen} == {8, 16, 32}


def test_what_is_done_already_is_not_proposed(training):
    done = replace(
        training,
        backend=BackendSettings(zero_stage=3, activation_checkpointing=True),
        reference=Reference(held=True, offloaded=True),
        micro_batch_tokens=8192,
    )
    assert learner_helps(done, lambda t: of(50)) == "any of these alone would do: 16 ranks, LoRA"


def test_two_changes_are_named_where_one_is_not_enough(training):
    def again(t: Training) -> Memory:
        return of(50 if t.backend.zero_stage == 3 and t.backend.activation_checkpointing else 150)

    assert learner_helps(training, again) == "activation checkpointing together with ZeRO 3 would do"


def test_the_largest_part_is_named_where_nothing_helps(training):
    told = learner_helps(training, lambda t: of(2 << 30))
    assert told == "no two changes of the learner would do; the largest part is logits, 2.0 GiB"


def test_an_engine_is_spread_over_gpus_that_its_heads_divide_over():
    def again(engine: EngineSettings) -> Memory:
        if engine.tensor_parallel_size == 2:
            raise UserError("heads")
        return of(50 if engine.tensor_parallel_size > 1 else 150)

    assert "tensor_parallel_size=4" in sampler_helps(EngineSettings(), again)
    assert sampler_helps(EngineSettings(), lambda e: of(150)) == "no single change would do"


def test_sizes_are_written_for_people():
    assert [gib(n) for n in (80 << 30, 88 << 20, 56 << 10)] == ["80.0 GiB", "88.0 MiB", "56.0 KiB"]
    assert [amount(n) for n in (8_292_166_656, 44_574_464, 323_216, 7)] == ["8.29 B", "44.6 M", "323 K", "7"]
