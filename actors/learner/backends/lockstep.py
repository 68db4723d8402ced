"""All ranks take part in every pass: equally many, and alike in whether there are pictures.

DeepSpeed gathers and reduces parameters as a pass reaches them. A rank that made fewer passes, or that did not enter
the vision tower when another did, would answer with other parameters than it is asked for, or not at all. So a rank
with fewer micro-batches repeats its smallest one with a loss of zero, and a batch without pictures is given a blank
one, behind all its text, wherever another rank has a picture: nothing is predicted from there, so nothing changes.
Pictures are read before the words on all ranks, whether or not a batch shows one twice (`TokenBatch.image_index`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from actors.learner.objective import Counts

if TYPE_CHECKING:
    from actors.learner.backends.ranks import Ranks
    from actors.model.batch import TokenBatch


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward (and backward) pass of a rank."""

    batch: TokenBatch
    real: bool  # else a repetition, made so that the others need not wait for ever
    last: bool


@dataclass(frozen=True)
class BlankPicture:
    """The smallest picture that a model can see: one token."""

    token: int
    side: int  # in patches
    width: int  # numbers in a patch

    @classmethod
    def of(cls, config: Any) -> BlankPicture:
        """From a model's own configuration."""
        vision = config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return cls(int(config.image_token_id), int(vision.spatial_merge_size), int(width))

    def behind(self, batch: TokenBatch) -> TokenBatch:
        """The same batch and this picture, in a column of its own at the right, where causal attention does not look.

        One column is widened: [batch, seq] becomes [batch, seq + 1]; which tokens are trained stays the same.
        """
        rows = len(batch.input_ids)

        def widened(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values, values.new_zeros((rows, 1))], dim=1)

        ids = widened(batch.input_ids)
        ids[0, -1] = self.token
        return replace(
            batch,
            input_ids=ids,
            loss_mask=widened(batch.loss_mask),
            pixel_values=torch.zeros(self.side**2, self.width),
            image_grid_thw=torch.tensor([[1, self.side, self.side]]),
            extras={name: widened(values) for name, values in batch.extras.items()},
        )


def counts_of(micro_batches: Sequence[TokenBatch], ranks: Ranks) -> Counts:
    """Trained tokens and sequences of a step over all ranks."""
    tokens = sum(batch.trained_tokens for batch in micro_batches)
    sequences = sum(int(batch.loss_mask.any(dim=1).sum()) for batch in micro_batches)
    tokens, sequences = ranks.total([tokens, sequences])
    return Counts(int(tokens), int(sequences))


def passes(
    micro_batches: Sequence[TokenBatch], ranks: Ranks, blank: BlankPicture, *, first_sees: bool = False
) -> list[Pass]:
    """This rank's passes, its own micro-batches first; with `first_sees` the first has a picture in any case.

    Raise ValueError when the rank has no micro-batch.
    """
    if not micro_batches:
        raise ValueError("every rank needs at least one micro-batch")
    (count,) = ranks.largest([len(micro_batches)])
    smallest = min(micro_batches, key=lambda batch: batch.input_ids.numel())
    mine = [*micro_batches, *[smallest] * (int(count) - len(micro_batches))]
    seeing = [batch.pixel_values is not None or (first_sees and i == 0) for i, batch in enumerate(mine)]
    if ranks.world > 1:
        seeing = [bool(seen) for seen in ranks.largest([float(seen) for seen in seeing])]
    if ranks.world > 1 or first_sees:
        mine = [_with_picture(batch, blank) if seen else batch for batch, seen in zip(mine, seeing, strict=True)]
    return [Pass(batch, real=i < len(micro_batches), last=i == len(mine) - 1) for i, batch in enumerate(mine)]


def _with_picture(batch: TokenBatch, blank: BlankPicture) -> TokenBatch:
    if batch.pixel_values is None:
        batch = blank.behind(batch)
    assert batch.image_grid_thw is not None
    if batch.image_index is None:
        batch = replace(batch, image_index=torch.arange(len(batch.image_grid_thw)))
    return batch
