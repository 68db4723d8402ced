"""Plain torch: flat fp32 master weights, AdamW, gradients summed over ranks. For debugging, and the yardstick of
the DeepSpeed backend."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.adapters import base_weights, without_adapters
from actors.learner.backends.lockstep import BlankPicture, counts_of, passes
from actors.learner.backends.protocol import StepStats, Tally
from actors.learner.backends.ranks import Ranks, training_device
from actors.learner.backends.trained_state import (
    ADAMW_MOMENTS,
    MASTER,
    Piece,
    load_state,
    save_state,
    saved_steps,
    start_moments,
)
from actors.learner.objective import Objective
from actors.learner.schedule import learning_rate
from actors.learner.settings import BackendSettings
from actors.model.batch import TokenBatch
from actors.model.forward import token_logprobs
from actors.model.load import cast_weights
from cluster.storage import Folder

MUON_MOMENT = "momentum_buffer"


class PlainBackend:
    """One model, replicated on every rank."""

    def __init__(self, model: Any, settings: BackendSettings, ranks: Ranks) -> None:
        self.ranks = ranks
        self.device = training_device()
        cast_weights(model, torch.float32 if settings.precision == "fp32" else torch.bfloat16)
        self.model = model.to(self.device)
        self.model.train()
        self._settings = settings
        self._blank = BlankPicture.of(model.config)
        self.steps = 0
        optimizer = settings.optimizer
        flat = decay_groups(self.model)
        matrices: list[Any] = []
        if optimizer.kind == "muon":
            matrices = inner_matrices(self.model)
            flat[True] = [p for p in flat[True] if not any(p is matrix for matrix in matrices)]
        decays = {decay: members for decay, members in flat.items() if members}
        flat_groups = [_FlatGroup(members) for members in decays.values()]
        self._groups: list[_Group] = list(flat_groups)
        rest = [
            ([group.master], optimizer.weight_decay if decay else 0.0)
            for group, decay in zip(flat_groups, decays, strict=True)
        ]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw(rest, settings), optimizer.lr)]
        # each with its peak rate
        if matrices:
            group = _MatrixGroup(matrices)
            self._groups.append(group)
            muon = torch.optim.Muon(group.masters, lr=0.0, weight_decay=optimizer.weight_decay)
            self._optimizers.append((muon, optimizer.muon_lr))

    def train_batch(self, micro_batches: Sequence[TokenBatch], objective: Objective) -> StepStats:
        started = time.perf_counter()
        counts = counts_of(micro_batches, self.ranks)
        planned = passes(micro_batches, self.ranks, self._blank)
        tally = Tally()
        for group in self._groups:
            group.clear()
        for one in planned:
            if not one.real:  # the weights are whole on every rank, so nobody waits
                continue
            batch = one.batch.to(self.device)
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
            micro_batches=len(planned),
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
        of_peak = lr / optimizer.lr if optimizer.lr else 0.0
        if not torch.isfinite(torch.tensor(norm)):
            return norm, lr, "the gradient is not finite"
        scale = min(1.0, optimizer.grad_clip / (norm + 1e-6)) if optimizer.grad_clip else 1.0
        for group in self._groups:
            group.hand_over(scale)
        for torch_optimizer, peak in self._optimizers:
            for torch_group in torch_optimizer.param_groups:
                torch_group["lr"] = peak * of_peak
            torch_optimizer.step()
        for group in self._groups:
            group.spread()
        self.steps += 1
        return norm, lr, ""

    def logprobs(
        self, micro_batches: Sequence[TokenBatch], temperature: float = 1.0, *, adapters: bool = True
    ) -> list[Tensor]:
        self.model.eval()
        with torch.no_grad(), nullcontext() if adapters else without_adapters(self.model):
            found = [token_logprobs(self.model, batch.to(self.device), temperature) for batch in micro_batches]
        self.model.train()
        return found

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        for weight in base_weights(self.model):
            yield weight.name, weight.read()

    def save(self, folder: Path) -> None:
        save_state(folder, self._pieces(self.steps), self.steps, self.ranks, partitioned=False)

    def load(self, address: str | os.PathLike[str]) -> None:
        folder = Folder(address)
        steps = saved_steps(folder)
        for optimizer, _ in self._optimizers:
            masters = [master for group in optimizer.param_groups for master in group["params"]]
            if isinstance(optimizer, torch.optim.Muon):
                for master in masters:
                    optimizer.state[master] = {MUON_MOMENT: torch.zeros_like(master)} if steps else {}
            else:
                start_moments(optimizer, masters, steps)
        self.steps = load_state(folder, self._pieces(steps), self.ranks)
        for group in self._groups:
            group.spread()

    def _pieces(self, steps: int) -> list[Piece]:
        """Every rank holds all of every trained parameter."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        adamw_state, *others = [optimizer.state for optimizer, _ in self._optimizers]
        pieces: list[Piece] = []
        for group in self._groups:
            state = adamw_state if isinstance(group, _FlatGroup) else others[0]
            for parameter, values in group.views(state if steps else {}):
                pieces.append(Piece(names[id(parameter)], tuple(parameter.shape), 0, values))
        return pieces

    def export(self, folder: Path) -> None:
        if self.ranks.rank == 0:
            weights = {name: tensor.detach().to("cpu") for name, tensor in self.named_weights()}
            self.model.save_pretrained(folder, state_dict=weights)


class _Group(ABC):
    """Parameters with one flat fp32 gradient and one flat fp32 master, that their optimizer sees in some form."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self.flat_master = torch.cat([p.data.reshape(-1).float() for p in parameters])
        self.grad = torch.zeros_like(self.flat_master)
        sizes = [p.numel() for p in parameters]
        self._grads = [g.view_as(p) for g, p in zip(self.grad.split(sizes), parameters, strict=True)]
        self._masters = [m.view_as(p) for m, p in zip(self.flat_master.split(sizes), parameters, strict=True)]

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

    @abstractmethod
    def hand_over(self, scale: float) -> None:
        """Scale the gradient and give it to the optimizer."""

    @abstractmethod
    def views(self, state: Mapping[Any, Mapping[str, Tensor]]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Each parameter with its master and its moments in `state`, the optimizer's or none: flat views."""

    def spread(self) -> None:
        """Copy the master back into the model, in the model's precision."""
        torch._foreach_copy_([p.data for p in self._parameters], self._masters)


class _FlatGroup(_Group):
    """Parameters that share a weight decay, as one tensor: the optimizer then costs no more than its arithmetic."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters)
        self.master = torch.nn.Parameter(self.flat_master)

    def hand_over(self, scale: float) -> None:
        self.master.grad = self.grad.mul_(scale) if scale != 1.0 else self.grad

    def views(self, state: Mapping[Any, Mapping[str, Tensor]]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        flat = {MASTER: self.flat_master}
        if state:
            flat |= {kind: state[self.master][kind] for kind in ADAMW_MOMENTS}
        sizes = [parameter.numel() for parameter in self._parameters]
        cut = {kind: values.split(sizes) for kind, values in flat.items()}
        for i, parameter in enumerate(self._parameters):
            yield parameter, {kind: values[i] for kind, values in cut.items()}


class _MatrixGroup(_Group):
    """Matrices, each of which its optimizer must see as one."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters)
        self.masters = [torch.nn.Parameter(master) for master in self._masters]

    def hand_over(self, scale: float) -> None:
        self.grad.mul_(scale)
        for master, grad in zip(self.masters, self._grads, strict=True):
            master.grad = grad

    def views(self, state: Mapping[Any, Mapping[str, Tensor]]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            moments = {MUON_MOMENT: state[master][MUON_MOMENT].view(-1)} if state else {}
            yield parameter, {MASTER: master.data.view(-1)} | moments


def inner_matrices(model: Any) -> list[Tensor]:
    """Weight matrices between the embedding and the head: what Muon is made for."""
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in outer]


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
