"""Which conversations a step of SFT learns from, and which rank takes which of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def batch_of(step: int, batch: int, n: int, seed: int) -> list[int]:
    """Which of `n` conversations step `step` (the first is 1) learns from.

    Every conversation comes once in an epoch, each epoch has an order of its own, a batch may reach over its end.
    """
    positions = range((step - 1) * batch, step * batch)
    epochs = sorted({position // n for position in positions})
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(n) for epoch in epochs}
    return [int(orders[position // n][position % n]) for position in positions]


def part_of(lengths: Sequence[int], rank: int, world: int) -> list[int]:
    """Indices of a rank's part: lengths dealt out like cards, so that ranks get about the same work."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return order[rank::world]
