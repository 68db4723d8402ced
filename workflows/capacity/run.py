"""`mmsearch plan`: memory, actors and tokens of a configuration, without starting anything.

Exit code 2, and one sentence with the GiB that are missing, when a stage does not fit.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console

from actors.sampler.settings import EngineSettings
from cluster import machine
from cluster.errors import UserError
from workflows.capacity.advice import learner_helps, problems, sampler_helps
from workflows.capacity.architecture import architecture, model_files
from workflows.capacity.hardware import DEFAULT_GPU_GIB, Hardware, gpu_gib
from workflows.capacity.memory import GIB, Memory
from workflows.capacity.stages import (
    Assumptions,
    StagePlan,
    Training,
    learner_memory,
    model_of,
    plan,
    sampling,
    stages_of,
)
from workflows.capacity.table import show


@dataclasses.dataclass(frozen=True)
class Asked:
    """The command's options."""

    stage: str | None = None  # sft or grpo; None: those that the run goes through
    model: str | None = None  # in place of the one that the configuration names
    gpu_gib: float | None = None  # None: of the GPUs here, else an H100's
    gpus_per_node: int = 8
    cpus_per_node: float | None = None
    nodes: int | None = None
    host_gib: float | None = None
    shm_gib: float | None = None  # None: half of the host's, as Linux has it
    reserve_gib: float = 2.0
    assumed: Assumptions = dataclasses.field(default_factory=Assumptions)
    as_json: bool = False


def run(settings: Any, asked: Asked) -> None:
    """Print the plan of each stage. Raise `UserError` when one does not fit."""
    hardware = _hardware(settings, asked)
    found = [
        plan(settings, stage, hardware, asked.assumed, asked.model)
        for stage in ([asked.stage] if asked.stage else stages_of(settings))
    ]
    if asked.as_json:
        print(json.dumps([as_json(one, hardware) for one in found], indent=2))
    else:
        console = Console()
        for one in found:
            show(console, one, hardware)
    sentences = [sentence for one in found if (sentence := _refusal(settings, one, hardware, asked))]
    if sentences:
        raise UserError(" ".join(sentences))
    if not asked.as_json:
        Console().print("It fits." if len(found) == 1 else "Each stage fits.")


def as_json(found: StagePlan, hardware: Hardware) -> dict[str, Any]:
    """For programs: the plan's fields, and what was concluded."""
    told = problems(found, hardware)
    document = dataclasses.asdict(found)
    for name in ("learner", "sampler", "host", "shared"):
        memory: Memory | None = getattr(found, name)
        if memory is not None:
            document[name] |= {"total": memory.total, "missing": memory.missing}
    if found.kv is not None:
        document["kv"] |= {
            "episodes_expected": found.kv.episodes_expected,
            "episodes_longest": found.kv.episodes_longest,
        }
    return document | {"hardware": dataclasses.asdict(hardware), "fits": not told, "problems": told}


def _refusal(settings: Any, found: StagePlan, hardware: Hardware, asked: Asked) -> str:
    """One sentence; empty when it fits."""
    told = problems(found, hardware)
    if not told:
        return ""
    if found.learner.missing:
        files = model_files(settings.pictures.on(asked.model or model_of(settings, found.stage)))

        def again(changed: Training) -> Memory:
            adapted = changed.lora != found.training.lora
            shape = architecture(files, changed.freeze, changed.lora) if adapted else found.shape
            return learner_memory(shape, files, changed, hardware, asked.assumed)

        told.append(f"for the learner {learner_helps(found.training, again)}")
    if found.sampler is not None and found.kv is not None and found.sampler.missing:
        shape, mean = found.shape, found.kv.expected

        def engine_again(changed: EngineSettings) -> Memory:
            return sampling(settings, changed, shape, hardware, mean)[0]

        told.append(f"for the samplers {sampler_helps(settings.engine, engine_again)}")
    return f"The {found.stage} stage of this configuration does not fit: {'; '.join(told)}."


def _hardware(settings: Any, asked: Asked) -> Hardware:
    on_gpus = settings.grpo.learner_gpus or settings.grpo.sampler_gpus or settings.sft.rank_gpus
    host = asked.host_gib * GIB if asked.host_gib is not None else None if on_gpus else machine.memory()
    shm = asked.shm_gib * GIB if asked.shm_gib is not None else None if host is None else host / 2
    gpu = asked.gpu_gib or gpu_gib() or DEFAULT_GPU_GIB
    return Hardware(
        gpu=int(gpu * GIB),
        gpus_per_node=asked.gpus_per_node,
        cpus_per_node=asked.cpus_per_node,
        nodes=asked.nodes,
        host=None if host is None else int(host),
        shm=None if shm is None else int(shm),
        reserve=int(asked.reserve_gib * GIB),
    )
