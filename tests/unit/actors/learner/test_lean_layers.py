"""A patch's product and a norm's formula, alone: against torch's convolution, and against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from actors.learner.backends.lean_layers import _product, norm_by_formula


@pytest.mark.parametrize("bias", [True, False])
def test_a_patch_read_by_a_product_is_the_patch_read_by_a_convolution(bias):
    torch.manual_seed(0)
    layer = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4), bias=bias)
    patches = torch.randn(5, 3, 2, 4, 4)
    torch.testing.assert_close(_product(layer, patches), layer(patches), rtol=1e-5, atol=1e-5)


def test_more_than_a_patch_is_refused():
    layer = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4))
    with pytest.raises(ValueError, match="for a kernel of"):
        _product(layer, torch.randn(5, 3, 2, 8, 8))


def norm_of(width: int, dtype: torch.dtype) -> Qwen2_5_VLRMSNorm:
    norm = Qwen2_5_VLRMSNorm(width).to(dtype)
    with torch.no_grad():
        norm.weight.add_(torch.randn(width) * 0.3)
    return norm


def gradients(norm: nn.Module, x: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, and gradients of the input and of the weight."""
    x = x.clone().requires_grad_()
    out = norm(x)
    of_x, of_weight = torch.autograd.grad(out, (x, norm.get_parameter("weight")), seen)
    return out.detach(), of_x, of_weight


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 40), width=st.sampled_from([8, 96, 128]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_norm_in_bf16_is_as_near_to_the_truth_as_transformers(tokens, width, scale):
    torch.manual_seed(tokens)
    norm = norm_of(width, torch.bfloat16)
    x, seen = (torch.randn(2, tokens, width).bfloat16() for _ in range(2))
    x = x * scale
    theirs = gradients(norm, x, seen)
    exact_norm = norm_of(width, torch.float64)
    exact_norm.weight.data = norm.weight.data.double()
    exact = gradients(_InFloat64(exact_norm), x.double(), seen.double())
    norm_by_formula(norm)
    for ours, other, true in zip(gradients(norm, x, seen), theirs, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        error, allowed = (float((it.double() - true).norm() / true.norm()) for it in (ours, other))
        assert error <= 1.1 * allowed + 1e-4


class _InFloat64(nn.Module):
    """The formula itself; transformers' own form computes in float32 whatever it is given."""

    def __init__(self, norm: Qwen2_5_VLRMSNorm) -> None:
        super().__init__()
        self.weight, self._eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps)


def test_a_norm_leaves_what_it_is_given_as_it_was():
    norm = norm_of(8, torch.float32)
    norm_by_formula(norm)
    x, seen = torch.randn(3, 8), torch.randn(3, 8)
    kept = x.clone(), seen.clone()
    gradients(norm, x, seen)
    assert torch.equal(x, kept[0])
    assert torch.equal(seen, kept[1])
