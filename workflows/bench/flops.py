"""The arithmetic that a Qwen2.5-VL or Qwen3-VL needs for sequences: matrix products alone, nothing for padding. Pure.

A product of [m, k] and [k, n] is 2mkn FLOPs. Forward; a backward pass needs twice as much again (each product has two
gradients), so training is three times `forward_flops` (Kaplan et al., arXiv 2001.08361, 2.1). Causal attention is
counted as half of the square. The input's own gradient at the first layer is not needed, and counted nevertheless:
less than a hundredth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TRAINING = 3  # forward passes that a forward and a backward pass cost


@dataclass(frozen=True)
class Shape:
    """The sizes that matter, of a text model and its vision tower."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int  # width of one
    mlp: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_mlp: int
    patch: int  # numbers in a patch
    merge: int  # patches a token, on each side
    window: int  # patches of an attention window
    full_layers: int  # vision layers that attend over the whole picture
    vision_products: int = 3  # matrix products of a vision layer's MLP: gated, or 2
    mergers: int = 1  # the last layer's, and one for each layer that Qwen3-VL's deepstack takes features from

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a Hugging Face configuration of Qwen2.5-VL or Qwen3-VL; the latter attends over the whole picture."""
        text, vision = config.text_config, config.vision_config
        side = getattr(vision, "window_size", 0) // vision.patch_size
        whole = getattr(vision, "fullatt_block_indexes", range(vision.depth))
        full = sum(i < vision.depth for i in whole)
        deepstack = getattr(vision, "deepstack_visual_indexes", None)
        return cls(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            mlp=text.intermediate_size,
            vocabulary=text.vocab_size,
            vision_hidden=vision.hidden_size,
            vision_layers=vision.depth,
            vision_mlp=vision.intermediate_size,
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge=vision.spatial_merge_size,
            window=side * side,
            full_layers=full,
            vision_products=2 if deepstack is not None else 3,
            mergers=1 + len(deepstack or ()),
        )


def text_flops(shape: Shape, length: int) -> int:
    """Of one sequence through all layers, without the head."""
    attention = shape.heads * shape.head
    projections = 2 * shape.hidden * (2 * attention + 2 * shape.kv_heads * shape.head)
    a_token = projections + 3 * 2 * shape.hidden * shape.mlp
    scores = 2 * 2 * attention * length * length // 2
    return shape.layers * (a_token * length + scores)


def head_flops(shape: Shape, targets: int) -> int:
    """Of the logits at trained positions."""
    return 2 * shape.hidden * shape.vocabulary * targets


def vision_flops(shape: Shape, patches: int) -> int:
    """Of one picture, merger included."""
    width, merged = shape.vision_hidden, shape.vision_hidden * shape.merge**2
    a_patch = 2 * width * 4 * width + shape.vision_products * 2 * width * shape.vision_mlp
    windowed = 2 * 2 * width * patches * min(patches, shape.window)
    whole = 2 * 2 * width * patches * patches
    attention = (shape.vision_layers - shape.full_layers) * windowed + shape.full_layers * whole
    merger = (2 * merged * merged + 2 * merged * shape.hidden) * (patches // shape.merge**2)
    layers = shape.vision_layers * a_patch * patches
    return 2 * shape.patch * width * patches + layers + attention + shape.mergers * merger


def forward_flops(shape: Shape, lengths: Sequence[int], targets: int, pictures: Sequence[int]) -> int:
    """Of sequences of these lengths, `targets` trained tokens in them, and distinct pictures of these patches."""
    return (
        sum(text_flops(shape, n) for n in lengths)
        + head_flops(shape, targets)
        + sum(vision_flops(shape, n) for n in pictures)
    )
