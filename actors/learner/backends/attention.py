"""Attention for training on a CPU: in fp32, and every picture's windows in one call.

torch's CPU flash kernel has no fast bf16 backward: at 64 x 4 heads x 170 tokens x 32 a layer's forward and backward
take 144 ms in bf16 and 75 ms in fp32 (one EPYC core, torch 2.13), and a picture's window 0.9 ms against 0.2 ms.
transformers' vision tower calls `sdpa` once a window; to an implementation that it takes for a flash one it hands all
of them at once, with their borders.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

TEXT = "sdpa_fp32"
VISION = "flash_like_windows_fp32"  # "flash" is the word by which transformers decides to pass borders


def use_fp32_attention(model: Any) -> None:
    """Switch every attention layer of a Hugging Face model; its masks stay those of `sdpa`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(TEXT, _attend)
    AttentionMaskInterface.register(TEXT, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    AttentionInterface.register(VISION, _attend_windows)
    model.set_attn_implementation(TEXT)
    for part in model.modules():
        config = getattr(part, "config", None)
        if config is not None and config is getattr(model.config, "vision_config", None):
            config._attn_implementation = VISION


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query, key, value [batch, heads, seq, width] of any float dtype; returns [batch, seq, heads, width] in it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return out.to(query.dtype), None


def _attend_windows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    **options: Any,
) -> tuple[Tensor, None]:
    """query, key, value [1, heads, seq, width], of which window i is [cu_seq_lens_q[i], cu_seq_lens_q[i + 1]).

    Returns [1, seq, heads, width]. Neighbouring windows of one length are attended in one batch.
    """
    borders = cu_seq_lens_q.tolist()
    parts: list[Tensor] = []
    for start, end, length in _runs(borders):
        batch = [
            it[0, :, start:end].unflatten(1, (-1, length)).transpose(0, 1) for it in (query, key, value)
        ]  # [windows, heads, length, width]
        out, _ = _attend(module, *batch, attention_mask=None, is_causal=False, scaling=options.get("scaling"))
        parts.append(out.flatten(0, 1))
    return torch.cat(parts)[None], None


def _runs(borders: list[int]) -> list[tuple[int, int, int]]:
    """(start, end, length of one window) of neighbouring windows of equal length."""
    runs: list[tuple[int, int, int]] = []
    for start, end in pairwise(borders):
        if runs and runs[-1][2] == end - start:
            runs[-1] = (runs[-1][0], end, end - start)
        else:
            runs.append((start, end, end - start))
    return runs
