"""Sequences to padded tensors, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from actors.model.expansion import Expanded
from actors.model.pixels import Pixels

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class TokenBatch:
    """Padded on the right. `extras` hold further per-token values, such as advantages, in the same layout.

    input_ids int64[batch, seq], attention_mask int64[batch, seq], loss_mask bool[batch, seq] (True: this token is a
    trained target), pixel_values float32[patches, patch_dim] or None, image_grid_thw int64[images, 3] or None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    loss_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    extras: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def trained_tokens(self) -> int:
        return int(self.loss_mask.sum())

    def flat(self, name: str) -> torch.Tensor:
        """The trained tokens of an extra, [n_trained], in row-major order: the order of `token_logprobs`."""
        return self.extras[name][self.loss_mask]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.loss_mask.to(device),
            None if self.pixel_values is None else self.pixel_values.to(device),
            None if self.image_grid_thw is None else self.image_grid_thw.to(device),
            {name: value.to(device) for name, value in self.extras.items()},
        )


def collate(
    sequences: Sequence[Expanded],
    pixels: Pixels,
    pad_id: int,
    extras: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> TokenBatch:
    """Pad sequences into one batch. `extras[name][i]` is an array of the length of sequence i.

    The first token of a sequence has no predecessor, so it is never a target.
    """
    import torch

    width = max(len(sequence) for sequence in sequences)
    shape = (len(sequences), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    attention = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    more = {name: np.zeros(shape, dtype=np.float32) for name in extras or {}}
    for row, sequence in enumerate(sequences):
        n = len(sequence)
        ids[row, :n] = sequence.token_ids
        attention[row, :n] = 1
        mask[row, 1:n] = sequence.loss_mask[1:]
        for name, values in (extras or {}).items():
            more[name][row, :n] = values[row]
    seen = [pixels.get(ref) for sequence in sequences for ref in sequence.images]
    return TokenBatch(
        torch.from_numpy(ids),
        torch.from_numpy(attention),
        torch.from_numpy(mask),
        torch.cat([values for values, _ in seen]) if seen else None,
        torch.stack([grid for _, grid in seen]) if seen else None,
        {name: torch.from_numpy(values) for name, values in more.items()},
    )


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in batches of similar length whose padded size stays within the budget (one sequence may exceed it alone)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
