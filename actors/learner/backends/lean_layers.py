"""Layers that cost many times their arithmetic in transformers' form, in a form that does not.

A vision tower cuts a picture into patches and reads each with a convolution whose kernel is the patch: a matrix
product. As a convolution in bf16 on a CPU, 2,048 patches of the embedded model take 206 ms forward and backward, as a
product 1.5 ms (one core with AMX, torch 2.13). A norm is 6.4 ms for 8,192 tokens of width 128 when autograd
strings its operations together, and 3.9 ms by the formula.

Always true: parameters, their names and shapes stay; what is computed stays the same, but for rounding.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import linear

from actors.learner.parts import vision_tower


def read_patches_by_product(model: Any) -> None:
    """Make a matrix product of every convolution of the vision tower whose kernel is all that it is given."""
    for module in vision_tower(model).modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size == module.stride and module.groups == 1:
            module.forward = MethodType(_product, module)


def _product(layer: Any, patches: Tensor) -> Tensor:
    """patches [n, channels, *kernel]; returns [n, out, 1, 1, 1]."""
    if patches.shape[2:] != layer.kernel_size:
        raise ValueError(f"patches of {tuple(patches.shape[2:])} for a kernel of {layer.kernel_size}")
    return linear(patches.flatten(1), layer.weight.flatten(1), layer.bias)[..., None, None, None]


def norm_by_formula(model: nn.Module) -> None:
    """Give every RMS norm of a Hugging Face model one operation, with a backward pass of its own."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm, module)


def _norm(layer: Any, hidden_states: Tensor) -> Tensor:
    return _Normed.apply(hidden_states, layer.weight, layer.variance_epsilon)


class _Normed(Function):
    """w x / sqrt(mean(x^2) + eps) (RMSNorm, arXiv 1910.07467, eq. 4), over the last dimension.

    In fp32 whatever the dtype of x; the quotient is rounded to that before it is weighed, as Qwen's are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return wide.mul_(scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x scale and u = grad w: dx = scale (u - n mean(u n)), dw = sum over tokens of grad n."""
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        normed, wide = x.float() * scale, grads[0].to(torch.float32, copy=True)
        products = (wide * normed).reshape(-1, width)
        mean = torch.mv(products, weight.float()).div_(width).view(scale.shape)
        found = wide.mul_(weight).addcmul_(normed, mean, value=-1).mul_(scale)
        return found.to(x.dtype), products.sum(0).to(weight.dtype), None
