"""From the settings to what each stage of a run needs: memory, actors, tokens. Starts nothing.

GRPO is planned for, and SFT before it when GRPO starts from this run's SFT export. Stages follow each other, so each
has the whole hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.learner.settings import BackendSettings, LoraSettings
from actors.model.pixels import CACHE_BYTES
from actors.sampler.settings import EngineSettings
from cluster.errors import UserError
from workflows.capacity.activations import Pass
from workflows.capacity.architecture import Architecture, ModelFiles, architecture, model_files
from workflows.capacity.hardware import Hardware
from workflows.capacity.memory import Item, Memory, fullest, gib
from workflows.capacity.placement import Actors, Node, place
from workflows.capacity.rank_memory import Reference, rank_memory, width_of
from workflows.capacity.sampler_memory import KvCache, sampler_memory
from workflows.run_folder import RunFolder

RANK, SFT_RANK, SAMPLER = "learner rank", "SFT rank", "sampler"
VERSIONS = 3  # in a folder on the learner's node: two that are kept, and the one being written
IN_STORE = 2  # in Ray's object store there: the newest, and the one being put
ONE_NODE = (
    "the actors take more than one node, and learner.publish.transport=shared_memory ends at the learner's: "
    "object_store reaches samplers on all"
)
LOCAL_FOLDER = (
    "the actors take more than one node, and the run's folder is local: run.storage must be a folder that all nodes "
    "see under the same path, or s3://bucket/prefix"
)


@dataclass(frozen=True)
class Assumptions:
    """What only a run could tell, as it is assumed here."""

    mean_tokens: int | None = None  # of an episode or conversation; None: half of what it may have
    picture_tokens: int | None = None  # of one picture at most; None: what the image processor scales down to
    trained_share: float = 1.0  # of a pass's tokens, at most: every one of them is the worst case


@dataclass(frozen=True)
class Training:
    """The learner's side of a stage."""

    backend: BackendSettings
    ranks: int
    cpus: float
    gpus: float
    micro_batch_tokens: int
    longest: int  # expanded tokens of one sequence at most
    pictures: int  # in one sequence at most
    freeze: tuple[str, ...]
    lora: LoraSettings | None
    reference: Reference
    read_in: int  # bytes of a weight while the model is loaded


@dataclass(frozen=True)
class Tokens:
    """Of one step."""

    sequences: int  # episodes or conversations
    expected: int
    most: int
    passes: int  # of one rank, as expected, when micro-batches are full
    in_flight: int = 0  # episodes played at a time, as configured
    tool_calls: int = 0  # at most
    publish_bytes: int = 0
    transport: str = ""  # by which those go, as in learner.publish


@dataclass(frozen=True)
class StagePlan:
    """One stage, planned."""

    stage: str
    shape: Architecture
    shipped: bool  # the model's folder is not there: its numbers are this package's
    training: Training
    learner: Memory
    sampler: Memory | None
    kv: KvCache | None
    host: Memory
    shared: Memory
    actors: tuple[Actors, ...]
    nodes: tuple[Node, ...]
    tokens: Tokens
    warnings: tuple[str, ...]

    @property
    def memories(self) -> list[Memory]:
        return [memory for memory in (self.learner, self.sampler, self.host, self.shared) if memory is not None]


def plan(settings: Any, stage: str, hardware: Hardware, assumed: Assumptions, model: str | None = None) -> StagePlan:
    """`settings` is `workflows.settings.Settings`; `stage` sft or grpo. Raise `UserError` for what fits together
    nowhere; what is merely too large is told by the memories."""
    files = model_files(settings.pictures.on(model or model_of(settings, stage)))
    found = (_grpo if stage == "grpo" else _sft)(settings, files, hardware, assumed)
    if len(found.nodes) > 1 and settings.run.folder.is_local:
        return replace(found, warnings=(*found.warnings, LOCAL_FOLDER))
    return found


def stages_of(settings: Any) -> list[str]:
    """Those that a run under these settings goes through."""
    return ["grpo"] if settings.grpo.start_from else ["sft", "grpo"]


def model_of(settings: Any, stage: str) -> str:
    """Where the stage starts from; an SFT export that is not there yet has the shape of what SFT starts from."""
    run = RunFolder(settings.run.folder)
    if stage == "grpo" and settings.grpo.start_from:
        return settings.grpo.start_from
    if stage == "grpo" and run.sft_export.exists("config.json"):
        return run.sft_export.address
    if settings.sft.start_from:
        return settings.sft.start_from
    if run.base.exists("config.json"):
        return run.base.address
    raise UserError(
        f"There is no model to plan for: {run.base} is not there yet, and neither sft.start_from nor grpo.start_from "
        "names one; give --model, a folder or the name of a known one."
    )


def _grpo(settings: Any, files: ModelFiles, hardware: Hardware, assumed: Assumptions) -> StagePlan:
    grpo, engine, learner = settings.grpo, settings.engine, settings.learner
    longest = min(settings.agent.limits.max_total_tokens, engine.max_model_len)
    kl = learner.objective.kl != "none" and learner.lora is None
    training = Training(
        backend=learner.backend,
        ranks=grpo.ranks,
        cpus=grpo.learner_cpus,
        gpus=grpo.learner_gpus,
        micro_batch_tokens=learner.micro_batch_tokens,
        longest=min(longest, learner.max_length),
        pictures=engine.images_per_prompt,
        freeze=tuple(learner.freeze),
        lora=learner.lora,
        reference=Reference(kl, learner.objective.reference_offload and grpo.learner_gpus > 0),
        read_in=width_of(learner.backend),
    )
    if grpo.sampler_gpus and grpo.sampler_gpus != engine.tensor_parallel_size:
        raise UserError(
            f"grpo.sampler_gpus is {grpo.sampler_gpus:g} and engine.tensor_parallel_size is "
            f"{engine.tensor_parallel_size}: a sampler's GPUs are those that share its engine."
        )
    shape = architecture(files, training.freeze, training.lora)
    mean = _mean(assumed, longest)
    sampler, kv = sampling(settings, engine, shape, hardware, mean)
    actors = (
        Actors(RANK, grpo.ranks, grpo.learner_cpus, grpo.learner_gpus, gang=True),
        Actors(SAMPLER, grpo.samplers, grpo.sampler_cpus, grpo.sampler_gpus),
        Actors("search worker", settings.search.pool.min, settings.search.pool.cpus, 0.0),
        Actors("reward evaluator", settings.reward.evaluators, settings.reward.evaluator_cpus, 0.0),
    )
    episodes = grpo.groups_per_step * grpo.group_size
    tokens = Tokens(
        sequences=episodes,
        expected=episodes * mean,
        most=episodes * longest,
        passes=_passes(episodes * mean, training),
        in_flight=min(grpo.samplers * grpo.most_per_sampler, grpo.slots * grpo.group_size),
        tool_calls=episodes * settings.agent.protocol.max_tool_calls,
        publish_bytes=width_of(learner.backend) * shape.parts.total,
        transport=learner.publish.transport,
    )
    warnings = _kv_warnings(kv, grpo.most_per_sampler, engine.max_num_seqs)
    found = _stage("grpo", shape, files, training, hardware, assumed, actors, tokens, (sampler, kv), warnings)
    if len(found.nodes) > 1 and learner.publish.transport == "shared_memory":
        return replace(found, warnings=(*found.warnings, ONE_NODE))
    return found


def sampling(
    settings: Any, engine: EngineSettings, shape: Architecture, hardware: Hardware, mean: int
) -> tuple[Memory, KvCache]:
    """One GPU of a sampler with this engine, and what its KV cache holds."""
    gpus = settings.grpo.sampler_gpus
    return sampler_memory(
        shape,
        engine,
        longest=min(settings.agent.limits.max_total_tokens, engine.max_model_len),
        expected=mean,
        capacity=_capacity(hardware, gpus),
        reserve=hardware.reserve if gpus else 0,
        on_gpu=gpus > 0,
    )


def _sft(settings: Any, files: ModelFiles, hardware: Hardware, assumed: Assumptions) -> StagePlan:
    sft = settings.sft
    training = Training(
        backend=sft.backend,
        ranks=sft.ranks,
        cpus=sft.rank_cpus,
        gpus=sft.rank_gpus,
        micro_batch_tokens=sft.micro_batch_tokens,
        longest=sft.max_length,
        pictures=settings.engine.images_per_prompt,
        freeze=tuple(sft.freeze),
        lora=sft.lora,
        reference=Reference(),
        read_in=width_of(sft.backend),
    )
    shape = architecture(files, training.freeze, training.lora)
    mean = _mean(assumed, sft.max_length)
    actors = (Actors(SFT_RANK, sft.ranks, sft.rank_cpus, sft.rank_gpus),)
    tokens = Tokens(sft.batch, sft.batch * mean, sft.batch * sft.max_length, _passes(sft.batch * mean, training))
    return _stage("sft", shape, files, training, hardware, assumed, actors, tokens, (None, None), [])


def _stage(
    stage: str,
    shape: Architecture,
    files: ModelFiles,
    training: Training,
    hardware: Hardware,
    assumed: Assumptions,
    actors: tuple[Actors, ...],
    tokens: Tokens,
    sampling: tuple[Memory | None, KvCache | None],
    warnings: Sequence[str],
) -> StagePlan:
    sampler, kv = sampling
    learner = learner_memory(shape, files, training, hardware, assumed)
    nodes = place(actors, hardware.gpus_per_node, hardware.cpus_per_node)
    return StagePlan(
        stage=stage,
        shape=shape,
        shipped=files.shipped,
        training=training,
        learner=learner,
        sampler=sampler,
        kv=kv,
        host=_host(shape, training, hardware, nodes, tokens, learner, sampler, actors),
        shared=_shared(hardware, nodes, tokens),
        actors=actors,
        nodes=tuple(nodes),
        tokens=tokens,
        warnings=tuple(warnings),
    )


def learner_memory(
    shape: Architecture, files: ModelFiles, training: Training, hardware: Hardware, assumed: Assumptions
) -> Memory:
    """Of the fullest moment of one rank."""
    return rank_memory(
        shape,
        training.backend,
        training.ranks,
        largest_pass(shape, files, training, assumed),
        reference=training.reference,
        capacity=_capacity(hardware, training.gpus),
        reserve=hardware.reserve if training.gpus else 0,
    )


def largest_pass(shape: Architecture, files: ModelFiles, training: Training, assumed: Assumptions) -> Pass:
    """A micro-batch of the longest sequences, each with all its pictures at their largest."""
    tokens = max(training.micro_batch_tokens, training.longest)  # a longer sequence has a pass of its own
    one = assumed.picture_tokens
    if one is None:
        one = training.longest if files.most_pixels is None else files.most_pixels // shape.vision.pixels_per_token
    share = min(1.0, training.pictures * one / training.longest)
    return Pass(tokens, int(tokens * assumed.trained_share), int(tokens * share))


def _host(
    shape: Architecture,
    training: Training,
    hardware: Hardware,
    nodes: Sequence[Node],
    tokens: Tokens,
    learner: Memory,
    sampler: Memory | None,
    actors: Sequence[Actors],
) -> Memory:
    """Memory of the fullest node; without GPUs all that actors hold is there, too."""
    model = width_of(training.backend) * shape.parts.total
    read = shape.parts.total * (training.read_in + (width_of(training.backend) if training.reference.held else 0))
    engines_here = sampler is not None and not any(some.gpus for some in actors if some.role == SAMPLER)

    def of(node: Node) -> Memory:
        ranks, engines = _ranks(node), node.actors.get(SAMPLER, 0)
        always: list[Item] = []
        if not training.gpus:
            always.append(Item("learner ranks", ranks * learner.total, f"{ranks} of {gib(learner.total)}"))
        if sampler is not None and engines_here:
            always.append(Item("samplers", engines * sampler.total, f"{engines} engines"))
        running = _weights_on_their_way(tokens, node, nodes)
        running.append(Item("pictures", ranks * CACHE_BYTES, f"{ranks} ranks keep so much of their pixels at most"))
        if training.reference.held and training.reference.offloaded:
            running.append(Item("references", ranks * model, f"{ranks} ranks keep one here"))
        loading = [Item("loading", ranks * read, f"{ranks} ranks read the whole model")] if training.gpus else []
        return fullest("a node's host", hardware.host, always, {"the run": running, "the start": loading})

    return max((of(node) for node in nodes), key=lambda memory: memory.total)


def _shared(hardware: Hardware, nodes: Sequence[Node], tokens: Tokens) -> Memory:
    """Shared memory of the fullest node, which is part of its host's."""
    found = (_weights_on_their_way(tokens, node, nodes) for node in nodes)
    items = max(found, key=lambda items: sum(item.bytes for item in items))
    return Memory("a node's shared memory (/dev/shm)", hardware.shm, "the run", tuple(items))


def _weights_on_their_way(tokens: Tokens, node: Node, nodes: Sequence[Node]) -> list[Item]:
    """What lies in shared memory of published weights, on a node of these; the first with a rank has rank 0."""
    one, engines = tokens.publish_bytes, node.actors.get(SAMPLER, 0)
    sends = node is next((some for some in nodes if _ranks(some)), None)
    items: list[Item] = []
    if tokens.transport == "shared_memory" and sends:
        items.append(Item("published weights", VERSIONS * one, "two kept, one coming"))
    if tokens.transport == "object_store" and (sends or engines):
        count, what = (IN_STORE, "the newest, and one coming") if sends else (1, "on its way to the samplers here")
        items.append(Item("published weights", count * one, f"in Ray's object store: {what}"))
    if tokens.transport in ("object_store", "storage") and engines:
        items.append(Item("weights landed", engines * one, f"{engines} samplers read a copy each"))
    return items


def _ranks(node: Node) -> int:
    return node.actors.get(RANK, 0) + node.actors.get(SFT_RANK, 0)


def _kv_warnings(kv: KvCache, episodes: int, sequences: int) -> list[str]:
    at_once = min(episodes, sequences)
    if kv.episodes_expected >= at_once:
        return []
    return [
        f"the KV cache of a sampler holds {kv.episodes_expected} episodes of {kv.expected:,} tokens, and "
        f"{at_once} are to be played at once: vLLM will preempt some and compute them again"
    ]


def _capacity(hardware: Hardware, gpus: float) -> int | None:
    """Bytes that one actor has on its device: a share of a GPU that it shares with its like, or the host."""
    if not gpus:
        return hardware.host
    return int(hardware.gpu * min(1.0, gpus))


def _mean(assumed: Assumptions, longest: int) -> int:
    return min(longest, assumed.mean_tokens or -(-longest // 2))


def _passes(tokens: int, training: Training) -> int:
    return -(-tokens // (training.ranks * training.micro_batch_tokens))
