"""Bytes that a training pass keeps for its backward pass. Pure arithmetic on shapes.

The counting follows Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv
2205.05198, section 4.1): what each operation saves for its gradient, of the layers as transformers 5 writes them. `b`
is the width of a number in bytes (2: bf16, 4: fp32), `h` the width of the residual stream, `q` and `k` those of all
query heads and of all key heads, `f` the MLP's, each for one token:

    RMSNorm           (4 + 2b) h         the stream in fp32, what is normalised, and the result that is multiplied next
    LayerNorm         2b h               the stream, and the result that is multiplied next
    attention         b (2q + 2k)        queries, keys, values and the output: no matrix of scores, by a fused kernel
                      + 4 heads          its row sums
                      + 4b head          the rotary tables
    queries' norms    (4 + b) (q + k)    Qwen3's
    gated MLP         4b f               gate, its activation, the other branch, their product
    plain MLP         2b f               before and after the activation
    patches           b times their numbers
    head              12 V               [trained tokens, vocabulary] in fp32 three times at the peak of the backward
                                         pass: log-probabilities, their gradient, and that of the logits

With checkpointing a layer keeps `b h` alone, and one layer at a time is computed again. What is frozen and has nothing
trained before it keeps nothing. What is not counted: padding of kernels, the allocator's fragments.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflows.capacity.architecture import Architecture, TextShape, VisionShape

FP32 = 4
HEAD_COPIES = 3  # of [trained tokens, vocabulary] in fp32, at the peak of the backward pass
HEAD_COPIES_FORWARD = 2  # logits and log-probabilities, where no gradient is wanted


@dataclass(frozen=True)
class Pass:
    """The largest micro-batch of one rank. The parts may be bounds that no pass reaches together."""

    tokens: int  # padded
    trained: int  # tokens whose log-probabilities are computed
    pictures: int  # tokens that come from the vision tower


@dataclass(frozen=True)
class Activations:
    """Bytes of one pass."""

    text: int  # kept from forward to backward
    vision: int
    head: int  # at the moment of the backward pass in which the head is at work
    layer: int  # in which one layer is, with what is computed again of it

    @property
    def total(self) -> int:
        return self.text + self.vision + max(self.head, self.layer)


def activations(shape: Architecture, work: Pass, width: int, checkpointing: bool) -> Activations:
    """Of a training pass over `work`, in numbers of `width` bytes."""
    text, vision = shape.text, shape.vision
    patches = work.pictures * vision.patches_per_token
    layer, block = text_layer(text, width), vision_block(vision, width)
    reads_back = shape.trained.vision > 0  # gradients go back into the tower
    if checkpointing:
        kept = text.layers * width * text.hidden * work.tokens
        seen = vision.layers * width * vision.hidden * patches if reads_back else 0
        again = max(layer * work.tokens, block * patches if reads_back else 0)
    else:
        kept = text.layers * layer * work.tokens
        seen = vision.layers * block * patches if reads_back else 0
        again = 0
    ends = norm(text.hidden, width) * work.tokens + width * text.hidden * work.trained  # last norm, head's input
    seen += width * vision.inputs * patches if reads_back else 0
    seen += projectors(shape, width) * work.pictures if reads_back or shape.trained.projector else 0
    gradients = _layer_gradients(text, width) * work.tokens
    return Activations(kept + ends, seen, head(text) * work.trained, again + gradients)


def forward_working(shape: Architecture, work: Pass, width: int) -> int:
    """Of a pass without gradients: one layer's intermediates, or the head's."""
    layer = (text_layer(shape.text, width)) * work.tokens
    return max(layer, HEAD_COPIES_FORWARD * FP32 * shape.text.vocabulary * work.trained)


def text_layer(text: TextShape, width: int) -> int:
    """Bytes per token of one decoder layer."""
    attention = width * 2 * (text.queries + text.keys) + FP32 * text.heads + 2 * 2 * width * text.head
    if text.query_norms:
        attention += (FP32 + width) * (text.queries + text.keys)
    return 2 * norm(text.hidden, width) + attention + 4 * width * text.mlp


def vision_block(vision: VisionShape, width: int) -> int:
    """Bytes per patch of one block of the vision tower, whose attention has as many key heads as query heads."""
    mlp = (4 if vision.gated else 2) * width * vision.mlp
    return 2 * norm(vision.hidden, width, vision.gated) + 4 * width * vision.hidden + mlp


def projectors(shape: Architecture, width: int) -> int:
    """Bytes per token of all projectors: each a norm over the merged patches, and two products with an activation."""
    vision = shape.vision
    merged = vision.hidden * vision.patches_per_token
    return vision.projectors * (norm(merged, width, vision.gated) + 2 * width * merged + width * shape.text.hidden)


def norm(hidden: int, width: int, root_mean_square: bool = True) -> int:
    """Bytes per token of an RMSNorm as transformers writes it, or of torch's LayerNorm."""
    return (FP32 + 2 * width if root_mean_square else 2 * width) * hidden


def head(text: TextShape) -> int:
    """Bytes per trained token at the peak of the head's backward pass."""
    return HEAD_COPIES * FP32 * text.vocabulary


def _layer_gradients(text: TextShape, width: int) -> int:
    """Bytes per token of the gradients under way inside one layer: of an MLP's two branches, and the stream's."""
    return width * (2 * text.mlp + 2 * text.hidden)
