"""The memory of one GPU of a sampler, and how many episodes its KV cache holds.

vLLM divides the weights over the GPUs of a sampler, measures what a step needs, and gives the rest of
`gpu_memory_utilization` to the KV cache; pictures are encoded outside of that share (`skip_mm_profiling`). A token's
keys and values are 2 x layers x key heads x head's width numbers; with more GPUs than key heads, heads are copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.sampler.settings import EngineSettings
from cluster.errors import UserError
from workflows.capacity.activations import FP32
from workflows.capacity.architecture import Architecture
from workflows.capacity.memory import Item, Memory, amount, gib

CPU_KV_BYTES = 256 << 20  # what a sampler gets on a CPU when nothing is said
LOGITS_COPIES = 4  # of [sequences, vocabulary] in fp32: logits, what is sampled from, log-probabilities, one to spare


@dataclass(frozen=True)
class KvCache:
    """What a sampler remembers of its episodes, over all of its GPUs."""

    bytes_per_token: int  # on one GPU
    tokens: int  # that fit
    longest: int  # expanded tokens of an episode at most
    expected: int

    @property
    def episodes_longest(self) -> int:
        """Episodes of the longest kind that fit at once."""
        return self.tokens // self.longest

    @property
    def episodes_expected(self) -> int:
        return self.tokens // self.expected


def sampler_memory(
    shape: Architecture,
    engine: EngineSettings,
    *,
    longest: int,
    expected: int,
    capacity: int | None,
    reserve: int,
    on_gpu: bool,
) -> tuple[Memory, KvCache]:
    """Of one GPU; with at least the KV of one episode of `longest` tokens, whether or not it fits."""
    check_parallel(shape, engine.tensor_parallel_size)
    parts, width = engine.tensor_parallel_size, 4 if engine.dtype == "float32" else 2
    weights = -(-width * shape.parts.total // parts)
    step, pictures = step_working(shape, engine, width), picture_working(shape, engine, width)
    token = kv_bytes_per_token(shape, parts, width)
    kv = engine.kv_cache_bytes or _left_for_kv(engine, capacity, weights + step, reserve, pictures, on_gpu)
    kv = max(kv, longest * token)
    items = (
        Item("weights", weights, f"{amount(shape.parts.total)} parameters" + (f" / {parts}" if parts > 1 else "")),
        Item("a step", step, f"{engine.max_num_batched_tokens:,} tokens, {engine.max_num_seqs} sequences"),
        Item("pictures", pictures, "encoding, and what is kept of it"),
        Item("KV cache", kv, f"{kv // token:,} tokens of {gib(token)}"),
        Item("reserve", reserve, "kernels, graphs, contexts: not counted"),
    )
    return Memory("a sampler", capacity, "full", items), KvCache(token, kv // token, longest, expected)


def kv_bytes_per_token(shape: Architecture, parts: int, width: int) -> int:
    """On one of `parts` GPUs."""
    text = shape.text
    return 2 * text.layers * max(1, text.kv_heads // parts) * text.head * width


def step_working(shape: Architecture, engine: EngineSettings, width: int) -> int:
    """The widest layer's intermediates for a full step (a gated MLP's three, and the stream twice), and the logits."""
    text, parts = shape.text, engine.tensor_parallel_size
    layer = width * engine.max_num_batched_tokens * (3 * text.mlp // parts + 2 * text.hidden)
    return layer + LOGITS_COPIES * FP32 * engine.max_num_seqs * text.vocabulary


def picture_working(shape: Architecture, engine: EngineSettings, width: int) -> int:
    """A block's intermediates for a full step of picture tokens, and the encoder's cache of as many."""
    if not engine.images_per_prompt:
        return 0
    vision, tokens = shape.vision, engine.max_num_batched_tokens
    block = (3 if vision.gated else 2) * vision.mlp + 6 * vision.hidden
    cache = width * tokens * shape.text.hidden * vision.projectors
    return width * tokens * vision.patches_per_token * block // engine.tensor_parallel_size + cache


def check_parallel(shape: Architecture, parts: int) -> None:
    """Raise `UserError` unless heads divide over the GPUs as vLLM wants them to."""
    heads, kv_heads = shape.text.heads, shape.text.kv_heads
    if heads % parts or (kv_heads % parts and parts % kv_heads):
        raise UserError(
            f"engine.tensor_parallel_size is {parts}, and {shape.name} has {heads} heads with {kv_heads} key heads, "
            "which do not divide over that many GPUs."
        )


def _left_for_kv(
    engine: EngineSettings, capacity: int | None, used: int, reserve: int, pictures: int, on_gpu: bool
) -> int:
    """What is left of the engine's share, and of the device when pictures need more than the rest of it."""
    if not on_gpu or capacity is None:
        return CPU_KV_BYTES
    share = int(capacity * engine.gpu_memory_utilization)
    return max(0, min(share - used - reserve, capacity - used - reserve - pictures))
