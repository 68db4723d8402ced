"""Plain torch: flat fp32 master weights, AdamW, gradients summed over ranks. For debugging, and the yardstick of
the DeepSpeed backend."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.backends.protocol import StepStats, Tally, passes, plan
from actors.learner.backends.ranks import Ranks, training_device
from actors.learner.objective import Objective
from actors.learner.schedule import learning_rate
from actors.learner.settings import BackendSettings
from actors.model.batch import TokenBatch
from actors.model.forward import token_logprobs
from cluster.errors import UserError

STATE_FILE, META_FILE = "plain_state.pt", "plain_state.json"


class PlainBackend:
    """One model, replicated on every rank."""

    def __init__(self, model: Any, settings: BackendSettings, ranks: Ranks) -> None:
        self.ranks = ranks
        self.device = training_device()
        self.model = model.to(self.device, torch.float32 if settings.precision == "fp32" else torch.bfloat16)
        self.model.train()
        self._settings = settings
        self.steps = 0
        self._groups = [_FlatGroup(members) for members in decay_groups(self.model).values() if members]
        self._optimizer = adamw(
            [([group.master], decay) for group, decay in zip(self._groups, self._decays(), strict=True)],
            settings,
        )

    def _decays(self) -> list[float]:
        weight_decay = self._settings.optimizer.weight_decay
        return [weight_decay if decays else 0.0 for decays, m in decay_groups(self.model).items() if m]

    def train_batch(self, micro_batches: Sequence[TokenBatch], objective: Objective) -> StepStats:
        started = time.perf_counter()
        counts, n_passes = plan(micro_batches, self.ranks)
        tally = Tally()
        for group in self._groups:
            group.clear()
        for batch, real, _ in passes(micro_batches, n_passes):
            if not real:
                continue
            batch = batch.to(self.device)
            terms = objective(token_logprobs(self.model, batch, objective.temperature), batch, counts)
            terms.loss.backward()
            for group in self._groups:
                group.collect()
            tally.add(terms)
        norm, lr, skipped = self._update()
        loss, metrics = tally.reduce(self.ranks)
        return StepStats(
            step=self.steps,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens=counts.tokens,
            sequences=counts.sequences,
            micro_batches=n_passes,
            seconds=time.perf_counter() - started,
            skipped=skipped,
            metrics=metrics,
        )

    def _update(self) -> tuple[float, float, str]:
        """Clip and step; returns gradient norm, learning rate and why nothing was done."""
        optimizer = self._settings.optimizer
        if self.ranks.world > 1:
            for group in self._groups:
                dist.all_reduce(group.grad)
        norm = float(torch.stack([group.grad.norm() for group in self._groups]).norm())
        lr = learning_rate(self.steps, optimizer)
        if not torch.isfinite(torch.tensor(norm)):
            return norm, lr, "the gradient is not finite"
        for torch_group in self._optimizer.param_groups:
            torch_group["lr"] = lr
        scale = min(1.0, optimizer.grad_clip / (norm + 1e-6)) if optimizer.grad_clip else 1.0
        for group in self._groups:
            group.hand_over(scale)
        self._optimizer.step()
        for group in self._groups:
            group.spread()
        self.steps += 1
        return norm, lr, ""

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        with torch.no_grad():
            return token_logprobs(self.model, batch.to(self.device), temperature)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter.data

    def save(self, folder: Path) -> None:
        if self.ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            masters = [group.master.data for group in self._groups]
            torch.save({"masters": masters, "optimizer": self._optimizer.state_dict()}, folder / STATE_FILE)
            (folder / META_FILE).write_text(json.dumps({"steps": self.steps}))

    def load(self, folder: Path) -> None:
        try:
            state = torch.load(folder / STATE_FILE, weights_only=True, map_location=self.device)
            meta = json.loads((folder / META_FILE).read_text())
            for group, saved in zip(self._groups, state["masters"], strict=True):
                group.master.data.copy_(saved)
            self._optimizer.load_state_dict(state["optimizer"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"The checkpoint {folder} cannot be loaded: {error}") from error
        self.steps = int(meta["steps"])
        for group in self._groups:
            group.spread()

    def export(self, folder: Path) -> None:
        if self.ranks.rank == 0:
            self.model.save_pretrained(folder)


class _FlatGroup:
    """Parameters that share a weight decay, with one flat fp32 master and one flat fp32 gradient.

    One tensor instead of a hundred makes the optimizer's cost that of its arithmetic.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self.master = torch.nn.Parameter(torch.cat([p.data.reshape(-1).float() for p in parameters]))
        self.grad = torch.zeros_like(self.master.data)
        sizes = [p.numel() for p in parameters]
        self._grads = [
            g.view_as(p) for g, p in zip(self.grad.split(sizes), parameters, strict=True)
        ]  # fmt: skip
        self._masters = [m.view_as(p) for m, p in zip(self.master.data.split(sizes), parameters, strict=True)]

    def clear(self) -> None:
        self.grad.zero_()
        for parameter in self._parameters:
            parameter.grad = None

    def collect(self) -> None:
        """Add the parameters' gradients to the flat one, in fp32."""
        for flat, parameter in zip(self._grads, self._parameters, strict=True):
            if parameter.grad is not None:
                flat.add_(parameter.grad)
                parameter.grad = None

    def hand_over(self, scale: float) -> None:
        self.master.grad = self.grad.mul_(scale) if scale != 1.0 else self.grad

    def spread(self) -> None:
        """Copy the master back into the model, in the model's precision."""
        torch._foreach_copy_([p.data for p in self._parameters], self._masters)


def decay_groups(model: Any) -> dict[bool, list[Any]]:
    """Trainable parameters by whether weight decay applies: to matrices, not to biases and norms."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # under ZeRO-3 a partitioned parameter keeps its shape in ds_shape
            groups[len(getattr(parameter, "ds_shape", parameter.shape)) >= 2].append(parameter)
    return groups


def adamw(groups: list[tuple[list[Any], float]], settings: BackendSettings) -> torch.optim.AdamW:
    """torch's fused AdamW over (parameters, weight decay) groups; the rate is set before every step."""
    optimizer = settings.optimizer
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": decay} for members, decay in groups],
        lr=0.0,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=True,
    )
