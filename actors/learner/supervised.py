"""Learning from examples: cross entropy of what was said, through the same backends as reinforcement learning.

Pre-training and SFT are this class with different examples. Always true: what is not `Expanded.loss_mask` (the task,
what tools returned, pictures) is in no loss; every method is called on all ranks together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.learner.backends import build_backend
from actors.learner.backends.protocol import StepStats
from actors.learner.backends.ranks import Ranks
from actors.learner.objective import Counts, LossTerms, SupervisedObjective
from actors.learner.settings import BackendSettings
from actors.model.batch import TokenBatch, collate, micro_batches
from actors.model.expansion import Expanded
from actors.model.load import exporting
from actors.model.pixels import Pixels
from cluster.storage import Folder

SURE = math.log(0.5)  # a token above this is the one that greedy decoding takes, whatever the others have


class SupervisedLearner:
    """A model, its optimizer, and steps over sequences of which some tokens are to be learned."""

    def __init__(
        self, model: Any, settings: BackendSettings, ranks: Ranks, pixels: Pixels, micro_batch_tokens: int
    ) -> None:
        """`ranks` have joined their process group already; `micro_batch_tokens` are padded ones of one pass."""
        pad = getattr(model.config.get_text_config(), "pad_token_id", None)
        self._pad = 0 if pad is None else int(pad)
        self._pixels, self._budget = pixels, micro_batch_tokens
        self._backend = build_backend(model, settings, ranks)

    @property
    def steps(self) -> int:
        """Optimizer steps made so far."""
        return self._backend.steps

    def step(self, sequences: Sequence[Expanded]) -> tuple[StepStats, list[bool]]:
        """One optimizer step over this rank's sequences and those of the others.

        Also, for each sequence: whether, before the update, every trained token had a probability above one half, so
        that greedy decoding would have said exactly this.
        """
        members = micro_batches([len(sequence) for sequence in sequences], self._budget)
        batches = [collate([sequences[i] for i in chosen], self._pixels, self._pad) for chosen in members]
        objective = _Graded()
        stats = self._backend.train_batch(batches, objective)
        exact = [False] * len(sequences)
        for chosen, worst in zip(members, objective.worst, strict=False):  # idle passes of a rank come after its own
            for i, value in zip(chosen, worst.tolist(), strict=True):
                exact[i] = value > SURE
        return stats, exact

    def save(self, folder: Path) -> None:
        """Weights and optimizer state into a local folder."""
        self._backend.save(folder)

    def load(self, folder: Path) -> None:
        """Continue from `save`. Raise `UserError` for what cannot be read."""
        self._backend.load(folder)

    def export(self, target: Folder, source: Path) -> None:
        """A complete model folder in Hugging Face format: the weights, and from `source` all that is none."""
        with exporting(source, target, copies=self._backend.ranks.rank == 0) as written:
            self._backend.export(written)


class _Graded(SupervisedObjective):
    """Cross entropy that also notes the least likely trained token of every sequence, pass by pass."""

    def __init__(self) -> None:
        self.worst: list[Tensor] = []  # one float32[batch] a pass

    def __call__(self, current: Tensor, batch: TokenBatch, counts: Counts) -> LossTerms:
        rows = batch.loss_mask.nonzero()[:, 0]
        start = torch.zeros(len(batch.loss_mask), device=current.device)
        self.worst.append(start.scatter_reduce(0, rows, current.detach().float(), "amin"))
        return super().__call__(current, batch, counts)
