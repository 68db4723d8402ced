"""What a learner asks of its engine, and what an optimizer step tells.

One `train_batch` is one optimizer step; its losses are divided by counts taken over all ranks (`lockstep.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from actors.learner.objective import LossTerms, Objective

if TYPE_CHECKING:
    from actors.learner.backends.ranks import Ranks
    from actors.model.batch import TokenBatch

COUNTED = ("tokens", "nonfinite")  # sums that stay counts; the others become means over tokens
TOP = "_max"  # how the names of maxima end


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did, or several (`together`), the same on every rank."""

    step: int  # optimizer steps applied so far, this one included
    loss: float
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # trained tokens
    sequences: int
    micro_batches: int  # passes of this rank
    seconds: float
    skipped: str = ""  # why no update was made, of several steps the first time; "" when all were
    metrics: dict[str, float] = field(default_factory=dict)  # means over trained tokens, counts, and maxima

    def numbers(self) -> dict[str, float]:
        """Everything as numbers for a tracker; `skipped` becomes 0 or 1."""
        names = ("step", "loss", "lr", "grad_norm", "tokens", "sequences", "micro_batches", "seconds")
        plain = {name: float(getattr(self, name)) for name in names}
        return plain | {"skipped": float(bool(self.skipped))} | self.metrics


def together(steps: Sequence[StepStats]) -> StepStats:
    """Of one or more steps in a row, in the order in which they were made: counts and seconds are sums, the rate is the
    last one's, loss, gradient norm and means are weighed by trained tokens.

    A step that was skipped has nothing to say about means, unless all were; `steps_skipped` among the metrics counts
    them.
    """
    made = [one for one in steps if not one.skipped] or list(steps)
    tokens = sum(one.tokens for one in made)

    def mean(values: Iterable[float]) -> float:
        return sum(v * one.tokens for v, one in zip(values, made, strict=True)) / max(tokens, 1)

    def combined(name: str) -> float:
        if name in COUNTED:
            return sum(one.metrics.get(name, 0.0) for one in steps)
        values = [one.metrics.get(name, 0.0) for one in made]
        return max(values) if name.endswith(TOP) else mean(values)

    names = dict.fromkeys(name for one in steps for name in one.metrics)
    skipped = [one.skipped for one in steps if one.skipped]
    return replace(
        steps[-1],
        loss=mean(one.loss for one in made),
        grad_norm=mean(one.grad_norm for one in made),
        tokens=sum(one.tokens for one in steps),
        sequences=sum(one.sequences for one in steps),
        micro_batches=sum(one.micro_batches for one in steps),
        seconds=sum(one.seconds for one in steps),
        skipped=skipped[0] if skipped else "",
        metrics={name: combined(name) for name in names} | {"steps_skipped": float(len(skipped))},
    )


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

    def load(self, address: str | os.PathLike[str]) -> None:
        """Go on from what `save` wrote, on however many ranks: all its files in one folder, local or s3://.

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
