"""What pre-training and SFT can both be told about their optimizer steps. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from actors.learner.settings import BackendSettings, OptimizerSettings

AT_LEAST_ONE = {"ge": 1}
NOT_NEGATIVE = {"ge": 0}


@dataclass(frozen=True)
class SupervisedSettings:
    """Steps of cross entropy under a learning rate that rises in a line, and ends at `floor` of its peak."""

    steps: int = field(default=500, metadata=AT_LEAST_ONE)
    # optimizer steps of the whole run, resumed parts included
    batch: int = field(default=64, metadata=AT_LEAST_ONE)
    # sequences of one step, over all ranks
    micro_batch_tokens: int = field(default=8192, metadata=AT_LEAST_ONE)
    # padded tokens of one forward pass on one rank
    lr: float = field(default=2e-3, metadata=NOT_NEGATIVE)
    # peak learning rate; 2e-3 is right for 1.5 M parameters, 1e-5 to 1e-4 for 7 B (both papers)
    optimizer: Literal["adamw", "muon"] = "adamw"
    # muon: for models made from nothing, with engine plain; see actors/learner/settings.py
    muon_lr: float = field(default=0.02, metadata=NOT_NEGATIVE)
    # peak learning rate of Muon's matrices
    warmup_steps: int = field(default=50, metadata=NOT_NEGATIVE)
    # optimizer steps of linear rise from 0
    schedule: Literal["cosine", "linear_end"] = "cosine"
    # how it falls: all the way, or in the last 30 % of the steps alone
    floor: float = field(default=0.05, metadata={"ge": 0.0, "le": 1.0})
    # the last step's share of the peak rate
    weight_decay: float = field(default=0.01, metadata=NOT_NEGATIVE)
    # of matrices
    beta2: float = field(default=0.98, metadata={"ge": 0.0, "lt": 1.0})
    # of AdamW; below torch's 0.999, because runs are short
    grad_clip: float = field(default=1.0, metadata=NOT_NEGATIVE)
    # global L2 norm; 0 turns it off
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    # what holds model and optimizer; see actors/learner/backends
    zero_stage: int = field(default=1, metadata={"ge": 0, "le": 3})
    # what DeepSpeed partitions across ranks
    precision: Literal["fp32", "bf16"] = "bf16"
    # bf16 keeps fp32 master weights in the optimizer
    compile: bool = False
    # torch.compile of the language model; pays off in runs of many minutes
    activation_checkpointing: bool = False
    # keep only what enters each layer and compute the rest again in the backward pass: less memory, one more forward
    threads: int = field(default=0, metadata=NOT_NEGATIVE)
    # torch threads of a rank; 0: as many as there are cores
    checkpoint_every: int = field(default=100, metadata=AT_LEAST_ONE)
    # steps; a killed run continues from the last one

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps} and must be less than steps={self.steps}")

    @property
    def backend(self) -> BackendSettings:
        """The learner's engine that these settings ask for."""
        optimizer = OptimizerSettings(
            kind=self.optimizer,
            muon_lr=self.muon_lr,
            lr=self.lr,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            total_steps=self.steps,
            floor=self.floor,
        )
        return BackendSettings(
            kind=self.engine,
            zero_stage=self.zero_stage,
            precision=self.precision,
            compile=self.compile,
            activation_checkpointing=self.activation_checkpointing,
            optimizer=optimizer,
        )


# of no consequence for what is learned: a run may be continued with other values
INCIDENTAL = ("threads", "checkpoint_every", "micro_batch_tokens", "activation_checkpointing")
