"""What this machine's matrix products reach, in the dtype and with the threads of the caller."""

from __future__ import annotations

import time

# [m, k] x [k, n]: large squares, and what a tiny model has in a batch of tokens
SHAPES = ((2048, 2048, 2048), (1024, 1024, 1024), (4096, 128, 384), (8192, 384, 128))


def matmul_peak(dtype: str, seconds: float = 0.4) -> float:
    """FLOP/s of the best of SHAPES, each tried for about `seconds`; `dtype` is torch's name."""
    return max(_rate(*shape, dtype, seconds) for shape in SHAPES)


def _rate(m: int, k: int, n: int, dtype: str, seconds: float) -> float:
    import torch

    left = torch.randn(m, k).to(getattr(torch, dtype))
    right = torch.randn(k, n).to(getattr(torch, dtype))
    out = left @ right  # the first one also chooses the kernel
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - began)
    return 2.0 * m * k * n / best
