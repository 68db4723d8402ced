"""The memory of one learner rank, by engine, ZeRO stage, precision and number of ranks.

Bytes for each parameter, `w` being its width (2: bf16, 4: fp32) and `n` the number of ranks; "learned" parameters are
those that have gradients, LoRA's adapters included:

                     plain      ZeRO 0     ZeRO 1         ZeRO 2     ZeRO 3
    weights, held    w          w          w              w          w / n
    fp32 masters     4          4          4 / n          4 / n      4 / n      learned; ZeRO 0 in fp32 has none
    Adam             8          8          8 / n          8 / n      8 / n      learned
    gradients        4 + w      w          4 + w          4 / n      4 / n      learned; ZeRO 1 in fp32 4 + 4 / n

The rows are Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv
1910.02054, section 5), with the gradients as DeepSpeed 0.19 keeps them here (accumulated in fp32: BF16_Optimizer at
stage 1, whose passes leave whole bf16 gradients besides). Beside them come DeepSpeed's buckets, which have their full
size however small the model is, and at stage 3 the parameters that are gathered at a time. A test compares the sums
with the tensors that real engines hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.learner.settings import BackendSettings
from workflows.capacity.activations import FP32, Activations, Pass, activations, forward_working
from workflows.capacity.architecture import Architecture
from workflows.capacity.memory import Item, Memory, amount, fullest

ADAM = 8  # bytes: two running means in fp32
REDUCE_BUCKET = 500_000_000  # numbers; the learner's, and DeepSpeed's own for its allreduce at stages 0 and 1
MAX_LIVE = 1_000_000_000  # parameters that stage 3 keeps gathered; stage3_max_live_parameters


@dataclass(frozen=True)
class States:
    """Bytes that one rank holds from step to step, whatever it computes."""

    weights: int
    gradients: int
    masters: int
    adam: int


@dataclass(frozen=True)
class Reference:
    """A frozen second copy of the model, for the KL term."""

    held: bool = False
    offloaded: bool = False  # to the host's memory, but for the pass in which it is asked


def rank_memory(
    shape: Architecture,
    backend: BackendSettings,
    ranks: int,
    work: Pass,
    *,
    reference: Reference,
    capacity: int | None,
    reserve: int,
) -> Memory:
    """Of a rank whose largest micro-batch is `work`; `reserve` bytes are left for what nobody counts."""
    width = width_of(backend)
    kept = states(shape, backend, ranks)
    second = width * shape.parts.total if reference.held else 0
    spare = Item("reserve", reserve, "kernels, contexts, fragments: not counted")
    always = [
        Item("weights", kept.weights, f"{amount(shape.held)} parameters"),
        Item("gradients", kept.gradients, f"of {amount(shape.learned)} that are learned"),
        Item("optimizer", kept.masters + kept.adam, "AdamW" + (" with fp32 masters" if kept.masters else "")),
        spare,
    ]
    on_their_way = Item("buckets", buckets(shape, backend, ranks), "gradients on their way to other ranks")
    stays = backend.kind == "deepspeed" and backend.zero_stage == 3  # stage 3 never gives its bucket back
    always += [on_their_way] if stays else []
    resident = [Item("reference", second, "frozen copy for the KL term")] if not reference.offloaded else []
    kept_by_pass = activations(shape, work, width, backend.activation_checkpointing)
    how = "checkpointed" if backend.activation_checkpointing else "not checkpointed"
    moments = {
        "the backward pass": [
            *resident,
            Item("activations, text", kept_by_pass.text, f"{work.tokens:,} tokens, {how}"),
            Item("activations, pictures", kept_by_pass.vision, f"{work.pictures:,} tokens of pictures"),
            _working(kept_by_pass, work),
            *([] if stays else [on_their_way]),
            Item("gathered weights", gathered(shape, backend), "of the layers at hand"),
        ],
        "the optimizer's step": [*resident, Item("gradients in fp32", step_scratch(shape, backend, ranks))],
    }
    if second and reference.offloaded:
        moments["the reference's pass"] = [
            Item("reference", second, "here for this pass, else in the host's memory"),
            Item("its forward pass", forward_working(shape, work, width)),
        ]
    running = fullest("a learner rank", capacity, always, moments)
    if backend.kind == "plain" or backend.zero_stage < 3:
        return running
    # DeepSpeed moves the module to its device, and parts it then (engine.py: _configure_distributed_model)
    whole = Item("weights", width * shape.held, f"{amount(shape.held)} parameters, before they are parted")
    return max(running, Memory(running.of, capacity, "the start", (whole, spare)), key=lambda memory: memory.total)


def _working(found: Activations, work: Pass) -> Item:
    if found.head > found.layer:
        return Item("logits", found.head, f"and their gradients, {work.trained:,} trained tokens")
    return Item("one layer", found.layer, "and its gradients")


def width_of(backend: BackendSettings) -> int:
    """Bytes of a weight as the forward pass reads it."""
    return 2 if backend.precision == "bf16" else FP32


def states(shape: Architecture, backend: BackendSettings, ranks: int) -> States:
    """The table above. Padding to the ranks' alignment, a few numbers, is left out."""
    width, learned = width_of(backend), shape.learned
    if backend.kind == "plain":
        return States(width * shape.held, (FP32 + width) * learned, FP32 * learned, ADAM * learned)
    stage = backend.zero_stage
    share = 1 if stage == 0 else ranks
    masters = 0 if stage == 0 and width == FP32 else FP32 * learned
    by_stage = {
        0: width * learned,
        1: (FP32 + width) * learned if width < FP32 else FP32 * (learned + _up(learned, ranks)),
    }
    return States(
        weights=_up(width * shape.held, ranks if stage == 3 else 1),
        gradients=by_stage.get(stage, _up(FP32 * learned, ranks)),
        masters=_up(masters, share),
        adam=_up(ADAM * learned, share),
    )


def buckets(shape: Architecture, backend: BackendSettings, ranks: int) -> int:
    """DeepSpeed's buffers for communication, and the gradient of a parameter that is larger than one."""
    if backend.kind == "plain":
        return 0
    width = width_of(backend)
    if backend.zero_stage < 2:
        return FP32 * min(REDUCE_BUCKET, shape.learned) if ranks > 1 else 0
    return width * (min(REDUCE_BUCKET, shape.learned) + shape.largest)


def gathered(shape: Architecture, backend: BackendSettings) -> int:
    """Parameters that are whole for a moment under stage 3."""
    if backend.kind == "plain" or backend.zero_stage < 3:
        return 0
    return width_of(backend) * min(MAX_LIVE, shape.held)


def step_scratch(shape: Architecture, backend: BackendSettings, ranks: int) -> int:
    """Gradients once more in fp32, as the optimizer's step wants them."""
    if backend.kind == "plain" or (backend.zero_stage == 0 and backend.precision == "fp32") or backend.zero_stage == 1:
        return 0
    return _up(FP32 * shape.learned, ranks if backend.zero_stage else 1)


def _up(count: int, parts: int) -> int:
    return -(-count // parts)
