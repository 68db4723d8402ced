"""DeepSpeed ZeRO 0-3 behind the backend Protocol.

DeepSpeed averages gradients over ranks and would divide losses by its number of accumulation steps. Losses here
are already divided by the global token count, so each is multiplied by the number of ranks and the second division
is turned off; the accumulation boundary is set by hand, so a step may have any number of micro-batches.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.learner.adapters import Weight, base_weights, without_adapters
from actors.learner.backends.lockstep import BlankPicture, counts_of, passes
from actors.learner.backends.plain import adamw, decay_groups
from actors.learner.backends.protocol import StepStats, Tally
from actors.learner.backends.ranks import Ranks, training_device
from actors.learner.backends.trained_state import load_state, neighbours, save_state, saved_steps, start_moments
from actors.learner.backends.zero_pieces import masters_of, pieces_of, spread, torch_optimizer
from actors.learner.objective import Objective
from actors.learner.schedule import learning_rate
from actors.learner.settings import BackendSettings
from actors.model.batch import TokenBatch
from actors.model.forward import token_logprobs
from actors.model.load import cast_weights
from cluster.storage import Folder

GATHER_BYTES = 256 << 20  # of parameters whole at once when ZeRO-3 weights are read
REDUCE_BUCKET = 500_000_000  # numbers; DeepSpeed's own
NOT_FINITE = "the gradient is not finite"


class Scorer(nn.Module):
    """The policy as DeepSpeed wants it: a module whose forward is the forward pass that we train through."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: TokenBatch, temperature: float) -> Tensor:
        return token_logprobs(self.policy, batch, temperature)


class DeepSpeedBackend:
    """The policy in a DeepSpeed engine with torch's AdamW (no compiled extension is needed)."""

    def __init__(self, model: Any, settings: BackendSettings, ranks: Ranks) -> None:
        deepspeed = import_deepspeed()
        deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False, verbose=False)
        self.ranks = ranks
        self.device = training_device()
        self._deepspeed = deepspeed
        self._settings = settings
        self._blank = BlankPicture.of(model.config)
        self.steps = 0
        cast_weights(model, torch.float32 if settings.precision == "fp32" else torch.bfloat16)
        decay = settings.optimizer.weight_decay
        groups = [(members, decay if decays else 0.0) for decays, members in decay_groups(model).items() if members]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        config = engine_config(settings, ranks, trained)
        with redirect_stdout(io.StringIO()):  # its bf16 optimizer prints memory reports that none asked for
            self.engine, self._optimizer, _, _ = deepspeed.initialize(
                model=Scorer(model), optimizer=adamw(groups, settings), config=config
            )
        self.engine.train()
        if settings.precision == "bf16" and settings.zero_stage == 0:
            # FP16_UnfusedOptimizer makes an empty step when it is built: Adam would start at its second one
            self._optimizer.optimizer.state.clear()

    @property
    def model(self) -> Any:
        return self.engine.module.policy

    def train_batch(self, micro_batches: Sequence[TokenBatch], objective: Objective) -> StepStats:
        started = time.perf_counter()
        counts = counts_of(micro_batches, self.ranks)
        # ZeRO-3 keeps the last step's gradient of what a step's first pass does not reach, and adds to it
        planned = passes(micro_batches, self.ranks, self._blank, first_sees=self._settings.zero_stage == 3)
        tally = Tally()
        for one in planned:
            self.engine.set_gradient_accumulation_boundary(one.last)
            batch = one.batch.to(self.device)
            terms = objective(self.engine(batch, objective.temperature), batch, counts)
            scale = float(self.ranks.world) if one.real else 0.0
            self.engine.backward(terms.loss * scale, scale_wrt_gas=False)
            if one.real:
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
        """Step; returns gradient norm, learning rate and why nothing was done."""
        lr = learning_rate(self.steps, self._settings.optimizer)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # at stage 0 gradients are whole and already reduced here, and DeepSpeed itself would step on NaN
        norm = self._whole_norm() if self._settings.zero_stage == 0 else 0.0
        if not math.isfinite(norm):
            self.engine.zero_grad()
            return norm, lr, NOT_FINITE
        self.engine.step()
        if self._settings.zero_stage > 0:
            norm = float(self.engine.get_global_grad_norm() or 0.0)
            if not self.engine.was_step_applied():
                return norm, lr, NOT_FINITE
        self.steps += 1
        return norm, lr, ""

    def _whole_norm(self) -> float:
        grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.stack([g.float().norm() for g in grads]).norm())

    def logprobs(
        self, micro_batches: Sequence[TokenBatch], temperature: float = 1.0, *, adapters: bool = True
    ) -> list[Tensor]:
        planned = passes(micro_batches, self.ranks, self._blank)
        self.engine.eval()
        with torch.no_grad(), nullcontext() if adapters else without_adapters(self.model):
            found = [self.engine(one.batch.to(self.device), temperature) for one in planned]
        self.engine.train()
        return found[: len(micro_batches)]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        weights = base_weights(self.model)
        if self._settings.zero_stage < 3:
            yield from ((weight.name, weight.read()) for weight in weights)
            return
        for bucket in neighbours(weights, _gathered_bytes, GATHER_BYTES):
            # modifier_rank None: we only read, so nothing is broadcast back
            gathered = [part for weight in bucket for part in weight.parts]
            with self._deepspeed.zero.GatheredParameters(gathered, modifier_rank=None):
                yield from ((weight.name, weight.read()) for weight in bucket)

    def save(self, folder: Path) -> None:
        pieces = pieces_of(self.model, self._optimizer, self._settings.zero_stage, self.ranks, self.steps)
        save_state(folder, pieces, self.steps, self.ranks, partitioned=self._settings.zero_stage > 0)

    def load(self, address: str | os.PathLike[str]) -> None:
        folder = Folder(address)
        steps, stage = saved_steps(folder), self._settings.zero_stage
        start_moments(torch_optimizer(self._optimizer), masters_of(self.model, self._optimizer, stage), steps)
        pieces = pieces_of(self.model, self._optimizer, stage, self.ranks, steps)
        self.steps = load_state(folder, pieces, self.ranks)
        spread(self.model, self._optimizer, stage)

    def export(self, folder: Path) -> None:
        named = self.named_weights()
        if self.ranks.rank == 0:
            weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in named}
            self.model.save_pretrained(folder, state_dict=weights)
            return
        for _ in named:  # under ZeRO-3 every rank takes part in gathering each bucket
            pass


def import_deepspeed() -> Any:
    """DeepSpeed without its 45 s build of a shared-memory op that one machine's gloo does not need."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def engine_config(settings: BackendSettings, ranks: Ranks, trained: int) -> dict[str, Any]:
    """DeepSpeed's own configuration, for so many trained numbers. Batch sizes are of no consequence: the boundary is
    set by hand."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks.world,
        "gradient_clipping": settings.optimizer.grad_clip,
        "steps_per_print": 2**31,
        # a buffer of a bucket's size is set aside, and its address space is not given back with the engine
        "zero_optimization": {"stage": settings.zero_stage, "reduce_bucket_size": min(REDUCE_BUCKET, trained)},
        "zero_allow_untested_optimizer": False,
    }
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # stage 0 reads its loss scale here although fp16 is off; 0, the default, would be a dynamic one
        config["fp16"] = {"enabled": False, "loss_scale": 1.0}
        if settings.zero_stage in (1, 2, 3):
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.zero_stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


def _gathered_bytes(weight: Weight) -> int:
    """Of the parameters that it is read from, when they are whole."""
    return sum(int(getattr(part, "ds_numel", 0)) * part.element_size() for part in weight.parts)
