"""What a learner asks of its engine, and what an optimizer step tells.

One `train_batch` is one optimizer step; its losses are divided by counts taken over all ranks (`lockstep.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from actors.learner.objective import LossTerms, Objective

if TYPE_CHECKING:
    from actors.learner.backends.ranks import Ranks
    from actors.model.batch import TokenBatch

COUNTED = ("tokens", "nonfinite")  # sums that stay counts; the others become means over tokens


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did, the same on every rank."""

    step: int  # optimizer steps applied so far, this one included
    loss: float
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # trained tokens
    sequences: int
    micro_batches: int  # passes of this rank
    seconds: float
    skipped: str = ""  # why no update was made; "" when it was
    metrics: dict[str, float] = field(default_factory=dict)  # means over trained tokens, and maxima

    def numbers(self) -> dict[str, float]:
        """Everything as numbers for a tracker; `skipped` becomes 0 or 1."""
        names = ("step", "loss", "lr", "grad_norm", "tokens", "sequences", "micro_batches", "seconds")
        plain = {name: float(getattr(self, name)) for name in names}
        return plain | {"skipped": float(bool(self.skipped))} | self.metrics


class LearnerBackend(Protocol):
    """An engine that holds the policy and its optimizer. Every method is called on all ranks together."""

    ranks: Ranks
    device: torch.device
    steps: int  # optimizer steps applied so far

    def train_batch(self, micro_batches: Sequence[TokenBatch], objective: Objective) -> StepStats:
        """One optimizer step over these micro-batches of this rank and those of the others."""
        ...

    def logprobs(
        self, micro_batches: Sequence[TokenBatch], temperature: float = 1.0, *, adapters: bool = True
    ) -> list[Tensor]:
        """Of the trained tokens of each of this rank's micro-batches, without gradient and dropout: float32[n], in the
        row-major order of its `loss_mask`. `adapters=False`: of the model that LoRA began with."""
        ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The base model's names and full tensors, LoRA merged; each is valid only until the next one is asked for."""
        ...

    def save(self, folder: Path) -> None:
        """What is trained, its optimizer state and random numbers, into a local folder, of which each rank writes some
        files; what is frozen is not in it. For any number of ranks (`trained_state.py`).

        Raise OSError on all ranks when any could not write.
        """
        ...

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, on however many ranks; all its files must be there on each.

        Raise UserError for a checkpoint that is missing, truncated, or of another model.
        """
        ...

    def export(self, folder: Path) -> None:
        """Weights, LoRA merged, and config in Hugging Face format (rank 0 writes)."""
        ...


class Tally:
    """Adds up the statistics of a step's passes, on the device, and reduces them over ranks once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, terms: LossTerms) -> None:
        for name, value in terms.sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        for name, value in terms.maxima.items():
            known = self._maxima.get(name)
            self._maxima[name] = value if known is None else torch.maximum(known, value)

    def reduce(self, ranks: Ranks) -> tuple[float, dict[str, float]]:
        """Loss of the step, and its metrics."""
        names, tops = sorted(self._sums), sorted(self._maxima)
        sums = dict(zip(names, ranks.total([float(self._sums[n]) for n in names]), strict=True))
        maxima = dict(zip(tops, ranks.largest([float(self._maxima[n]) for n in tops]), strict=True))
        tokens = max(sums["tokens"], 1.0)
        metrics = {n: v if n in COUNTED else v / tokens for n, v in sums.items() if n != "loss"}
        squared = metrics.pop("correction_squared", 0.0)
        if squared > 0.0:
            metrics["effective_sample_fraction"] = metrics["correction_weight"] ** 2 / squared
        return sums["loss"], metrics | maxima
