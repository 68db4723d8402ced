"""What does not fit, and what would help. Pure, given ways to plan a memory again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from actors.learner.settings import LoraSettings
from actors.sampler.settings import EngineSettings
from cluster.errors import UserError
from workflows.capacity.hardware import Hardware
from workflows.capacity.memory import Memory, gib
from workflows.capacity.placement import gpus_needed
from workflows.capacity.rank_memory import Reference
from workflows.capacity.stages import StagePlan, Training

Change = Callable[[Training], Training]


def problems(found: StagePlan, hardware: Hardware) -> list[str]:
    """One clause for each thing that does not fit, with what is missing."""
    told = [
        f"{memory.of} needs {gib(memory.total)} and has {gib(memory.capacity or 0)}: {gib(memory.missing)} are missing"
        for memory in found.memories
        if memory.missing
    ]
    if hardware.nodes is not None and len(found.nodes) > hardware.nodes:
        have, need = hardware.nodes * hardware.gpus_per_node, gpus_needed(found.actors)
        lacking = f": {need - have} GPUs are missing" if need > have else ""
        told.append(f"{len(found.nodes)} nodes are needed and {hardware.nodes} are there{lacking}")
    return told


def learner_helps(training: Training, again: Callable[[Training], Memory]) -> str:
    """The changes of the learner each of which alone would make it fit, else the first two that do it together."""
    options = list(_changes(training))
    alone = _mildest(words for words, change in options if not again(change(training)).missing)
    if alone:
        return f"any of these alone would do: {', '.join(alone)}"
    for (words, change), (others, other) in combinations(options, 2):
        if not again(other(change(training))).missing:
            return f"{words} together with {others} would do"
    largest = max(again(training).items, key=lambda item: item.bytes)
    return f"no two changes of the learner would do; the largest part is {largest.name}, {gib(largest.bytes)}"


def sampler_helps(engine: EngineSettings, again: Callable[[EngineSettings], Memory]) -> str:
    """The changes of the engine each of which alone would make it fit."""
    options = [
        (f"engine.tensor_parallel_size={n} (and grpo.sampler_gpus)", {"tensor_parallel_size": n}) for n in (2, 4, 8)
    ]
    options += [
        (f"engine.max_num_batched_tokens={n}", {"max_num_batched_tokens": n})
        for n in (8192, 4096, 2048)
        if n < engine.max_num_batched_tokens
    ]
    fitting = [words for words, changes in options if _fits(again, replace(engine, **changes))]
    return f"any of these would do: {', '.join(_mildest(fitting))}" if fitting else "no single change would do"


def _fits(again: Callable[[EngineSettings], Memory], engine: EngineSettings) -> bool:
    try:
        return not again(engine).missing
    except UserError:  # heads that do not divide over so many GPUs
        return False


def _changes(training: Training) -> Iterator[tuple[str, Change]]:
    """What could be changed, in words, mild things first."""
    backend = training.backend
    if not backend.activation_checkpointing:
        yield "activation checkpointing", lambda t: _with(t, activation_checkpointing=True)
    if training.reference.held and not training.reference.offloaded:
        yield "the reference offloaded", lambda t: replace(t, reference=Reference(held=True, offloaded=True))
    for stage in range(backend.zero_stage + 1 if backend.kind == "deepspeed" else 1, 4):
        yield f"ZeRO {stage}", _with_stage(stage)
    for tokens in (training.micro_batch_tokens // 2, training.micro_batch_tokens // 4):
        if tokens >= training.longest:
            yield f"micro-batches of {tokens:,} tokens", _with_tokens(tokens)
    for ranks in (2 * training.ranks, 4 * training.ranks):
        yield f"{ranks} ranks", _with_ranks(ranks)
    if training.lora is None:
        yield "LoRA", lambda t: replace(t, lora=LoraSettings(), reference=Reference())


def _with(training: Training, **changes: Any) -> Training:
    return replace(training, backend=replace(training.backend, **changes))


def _with_stage(stage: int) -> Change:
    return lambda training: _with(training, kind="deepspeed", zero_stage=stage)


def _with_tokens(tokens: int) -> Change:
    return lambda training: replace(training, micro_batch_tokens=tokens)


def _with_ranks(ranks: int) -> Change:
    return lambda training: replace(training, ranks=ranks)


def _mildest(words: Iterable[str]) -> list[str]:
    """The first of those that differ in a number alone."""
    kept: dict[str, str] = {}
    for word in words:
        kept.setdefault(re.sub(r"[\d,]", "", word), word)
    return list(kept.values())
