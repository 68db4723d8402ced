"""Attention for training in bf16 on a CPU: in fp32, with fewer passes over memory, a picture's windows in one call.

torch's CPU flash kernel has no fast bf16 backward: at 31 x 4 heads x 257 tokens x 32 a layer's forward and backward
take 75 ms in bf16 and 39 ms in fp32 (one core with AMX, torch 2.13). transformers' vision tower calls it once a window,
and its rotary embedding goes over queries and keys a dozen times in each direction, rounding each time: 9.6 ms for 32 x
256 tokens of the embedded model against 4.6 ms here, where nothing is rounded before the scores.

Always true: the layers keep their parameters and their names, are called as before, and make what transformers' own
make, but for rounding. There is neither a mask nor a cache: padding stands on the right, where causal attention does
not look.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention

from actors.learner.parts import language_model, vision_tower


def use_fp32_attention(model: Any) -> None:
    """Give every attention layer of a Hugging Face Qwen2.5-VL or Qwen3-VL this forward pass, in place."""
    language: Any = language_model(model)
    vision: Any = vision_tower(model)
    for layer in language.layers:
        layer.self_attn.forward = MethodType(_attend_text, layer.self_attn)
    for block in vision.blocks:
        block.attn.forward = MethodType(_attend_windows, block.attn)


def _attend_text(
    layer: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """hidden_states [batch, seq, hidden]; returns the same shape and dtype."""
    if attention_mask is not None:
        raise ValueError("this attention is causal and knows no other mask")
    heads = (*hidden_states.shape[:-1], -1, layer.head_dim)  # [batch, seq, heads, width]
    query, key, value = (part(hidden_states).view(heads) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    if hasattr(layer, "q_norm"):  # Qwen3
        query, key = layer.q_norm(query), layer.k_norm(key)
    cos, sin = (it.float().unsqueeze(2) for it in position_embeddings)
    out = scaled_dot_product_attention(
        _Turned.apply(query, cos, sin).transpose(1, 2),
        _Turned.apply(key, cos, sin).transpose(1, 2),
        value.float().transpose(1, 2),
        is_causal=True,
        scale=layer.scaling,
        enable_gqa=layer.num_key_value_groups > 1,
    )
    return layer.o_proj(out.transpose(1, 2).to(hidden_states.dtype).flatten(2)), None


def _attend_windows(
    layer: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> Tensor:
    """hidden_states [patches, hidden], of which window i is [cu_seqlens[i], cu_seqlens[i + 1]).

    Neighbouring windows of one length are attended in one batch.
    """
    all_heads = layer.qkv(hidden_states).view(len(hidden_states), 3, layer.num_heads, -1)
    query_key, value = all_heads.split([2, 1], dim=1)
    cos, sin = (it.float()[:, None, None] for it in position_embeddings)
    query, key = _Turned.apply(query_key, cos, sin).unbind(1)
    runs = _runs(cu_seqlens.tolist())
    sizes = [count * length for count, length in runs]
    outs: list[Tensor] = []
    for (_, length), *parts in zip(runs, *(it.split(sizes) for it in (query, key, value[:, 0].float())), strict=True):
        batch = [it.unflatten(0, (-1, length)).transpose(1, 2) for it in parts]  # [windows, heads, length, width]
        outs.append(scaled_dot_product_attention(*batch, scale=layer.scaling).transpose(1, 2).flatten(0, 1))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return layer.proj(out.to(hidden_states.dtype).flatten(1))


def _runs(borders: list[int]) -> list[tuple[int, int]]:
    """(number of windows, length of one) of neighbouring windows of equal length."""
    return [(len(list(run)), length) for length, run in groupby(end - start for start, end in pairwise(borders))]


class _Turned(Function):
    """Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34; halves are paired, as transformers does), in fp32.

    x [..., width] of any float dtype; cos, sin fp32, broadcast against it. Their two halves are equal, so a turn is an
    orthogonal map and its gradient the turn back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, -1).to(ctx.dtype), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    x, sin = x.float(), sin[..., :half]
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return out
