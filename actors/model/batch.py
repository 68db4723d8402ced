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
    """Padded on the right, where causal attention does not look: there is no attention mask. `extras` hold further
    per-token values, such as advantages, in the same layout.

    input_ids int64[batch, seq], loss_mask bool[batch, seq] (True: this token is a
    trained target), image_grid_thw int64[images, 3] or None, in order of appearance. The episodes of one question share
    its pictures, so the vision tower reads each once: pixel_values[patches, patch_dim] or None, in the dtype of
    `Pixels`, are those of the distinct pictures, and image_index int64[images] says which of them each appearance is
    (None: all are distinct).
    """

    input_ids: torch.Tensor
    loss_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    image_index: torch.Tensor | None = None

    @property
    def trained_tokens(self) -> int:
        return int(self.loss_mask.sum())

    def flat(self, name: str) -> torch.Tensor:
        """The trained tokens of an extra, [n_trained], in row-major order: the order of `token_logprobs`."""
        return self.extras[name][self.loss_mask]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(
            self.input_ids.to(device),
            self.loss_mask.to(device),
            None if self.pixel_values is None else self.pixel_values.to(device),
            None if self.image_grid_thw is None else self.image_grid_thw.to(device),
            {name: value.to(device) for name, value in self.extras.items()},
            None if self.image_index is None else self.image_index.to(device),
        )


def collate(
    sequences: Sequence[Expanded],
    pixels: Pixels,
    pad_id: int,
    extras: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> TokenBatch:
    """Pad sequences into one batch. `extras[name][i]` is an array of the length of sequence i (else ValueError).

    The first token of a sequence has no predecessor, so it is never a target.
    """
    import torch

    for name, values in (extras or {}).items():
        if [len(value) for value in values] != [len(sequence) for sequence in sequences]:
            raise ValueError(f"the values of {name!r} are not as long as their sequences")
    width = max(len(sequence) for sequence in sequences)
    shape = (len(sequences), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    more = {name: np.zeros(shape, dtype=np.float32) for name in extras or {}}
    for row, sequence in enumerate(sequences):
        n = len(sequence)
        ids[row, :n] = sequence.token_ids
        mask[row, 1:n] = sequence.loss_mask[1:]
        for name, values in (extras or {}).items():
            more[name][row, :n] = values[row]
    appearing = [ref for sequence in sequences for ref in sequence.images]
    seen = {sha256: pixels.get(ref) for sha256, ref in {ref.sha256: ref for ref in appearing}.items()}
    number = {sha256: i for i, sha256 in enumerate(seen)}
    return TokenBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.cat([values for values, _ in seen.values()]) if seen else None,
        torch.stack([seen[ref.sha256][1] for ref in appearing]) if seen else None,
        {name: torch.from_numpy(values) for name, values in more.items()},
        torch.tensor([number[ref.sha256] for ref in appearing]) if len(number) < len(appearing) else None,
    )


PASS_TOKENS = (
    1024  # what a forward and backward pass costs beyond its tokens, in tokens: about a thousand on two CPU cores
)


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, whose padded size stays within the budget.

    Of all ways to cut the sorted lengths into batches the cheapest: each costs its padded tokens and PASS_TOKENS, so
    padding is avoided where that is worth another pass. A sequence that exceeds the budget by itself gets a batch of
    its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best, cut = [0] * (len(order) + 1), [0] * (len(order) + 1)  # best[n]: cost of the n longest; cut[n]: their last cut
    for end in range(1, len(order) + 1):
        best[end], start = min(
            (best[start] + lengths[order[start]] * (end - start) + PASS_TOKENS, -start)
            for start in range(end)
            if end - start == 1 or lengths[order[start]] * (end - start) <= token_budget
        )
        cut[end] = -start
    batches, end = [], len(order)
    while end:
        batches.append(order[cut[end] : end])
        end = cut[end]
    return batches[::-1]
