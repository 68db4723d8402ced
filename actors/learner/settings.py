"""What can be configured about learning. Imports neither torch nor Ray, so `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class CorrectionSettings:
    """Off-policy correction: importance of the proximal policy against the one that sampled (behaviour)."""

    level: Literal["off", "token", "sequence"] = "token"
    # token: one weight per token; sequence: the product over a sequence, given to each of its tokens
    mode: Literal["truncate", "mask"] = "truncate"
    # truncate: min(weight, cap); mask: weights outside [1/cap, cap] become 0 (IcePop)
    cap: float = 2.0
    # largest weight; above about 1 it must be bounded at all (default of prime-rl, verl)

    def __post_init__(self) -> None:
        if self.cap < 1.0:
            raise ValueError(f"correction.cap is {self.cap}: a cap below 1 would shrink on-policy tokens")


@dataclass(frozen=True)
class ObjectiveSettings:
    """The policy-gradient loss: by default GRPO with DAPO's clip-higher and token mean."""

    surrogate: Literal["clip", "cispo"] = "clip"
    # clip: PPO's pessimistic minimum; cispo: clipped detached weight times log-prob (MiniMax-M1)
    ratio_level: Literal["token", "sequence"] = "token"
    # sequence: geometric-mean ratio of the whole sequence (GSPO); clip it with 3e-4 / 4e-4
    clip_low: float = 0.2
    # ratios below 1 - clip_low are clipped (PPO); 1 leaves CISPO's lower side unbounded, as its paper does
    clip_high: float = 0.28
    # ratios above 1 + clip_high are clipped (DAPO)
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    # over the whole step and all ranks: DAPO | original GRPO | Dr. GRPO
    fixed_length: int = 8192
    # tokens; the constant divisor of aggregation "fixed_length"
    proximal: Literal["learner", "behaviour"] = "learner"
    # denominator of the ratio: learner's own log-probs at the start of the step (decoupled), or the sampler's
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    kl: Literal["off", "k1", "k2", "k3"] = "off"
    # estimator of the divergence from a frozen reference (Schulman); k3 is the papers' "low-variance" one
    kl_coef: float = 0.001
    # weight of the divergence in the loss (both papers)
    temperature: float = 1.0
    # divides the logits, as the sampler did

    def __post_init__(self) -> None:
        if not 0.0 <= self.clip_low <= 1.0:
            raise ValueError(f"clip_low is {self.clip_low}; accepted: 0 to 1")
        if self.clip_high < 0.0:
            raise ValueError(f"clip_high is {self.clip_high}; accepted: 0 or more")
        if self.fixed_length < 1:
            raise ValueError(f"fixed_length is {self.fixed_length}; accepted: 1 or more tokens")
        if self.temperature <= 0.0:
            raise ValueError(f"temperature is {self.temperature}; a learner needs more than 0")
        if self.proximal == "behaviour" and self.correction.level != "off":
            raise ValueError(
                "proximal 'behaviour' already divides by the sampler's log-probs: set correction.level to off"
            )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule."""

    lr: float = 2e-6
    # peak learning rate (both papers; the embedded model wants 1e-4 for RL, 2e-3 for SFT)
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    # matrices only: biases and norms are left alone (veRL's default value)
    grad_clip: float = 1.0
    # global L2 norm; 0 turns it off (veRL)
    schedule: Literal["constant", "cosine", "hold_then_decay"] = "constant"
    # hold_then_decay: (1-floor)/(1+exp((step-hold)/(hold/10))) + floor, the "45 steps" of both papers' script
    warmup_steps: int = 0
    # optimizer steps of linear rise from 0
    total_steps: int = 0
    # optimizer steps to the end of a cosine; needed by that schedule alone
    hold_steps: int = 45
    # the step at which hold_then_decay has fallen half-way
    floor: float = 0.05
    # smallest factor of the peak rate, for cosine and hold_then_decay

    def __post_init__(self) -> None:
        if self.schedule == "cosine" and self.total_steps <= self.warmup_steps:
            raise ValueError("schedule 'cosine' needs total_steps larger than warmup_steps")
        if self.schedule == "hold_then_decay" and self.hold_steps < 1:
            raise ValueError(f"hold_steps is {self.hold_steps}; accepted: 1 or more")
        if self.lr < 0 or not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"lr {self.lr} must not be negative and floor {self.floor} must lie in 0 to 1")


@dataclass(frozen=True)
class BackendSettings:
    """The engine under the objective."""

    kind: Literal["deepspeed", "plain"] = "deepspeed"
    zero_stage: int = 0
    # 0-3: what DeepSpeed partitions across ranks (nothing, optimizer, gradients, parameters)
    precision: Literal["fp32", "bf16"] = "bf16"
    # bf16 keeps fp32 master weights in the optimizer
    compile: bool = False
    # torch.compile of the language model; pays off in runs of many minutes on CPU
    timeout_s: float = 600.0
    # seconds until a collective with a dead rank gives up
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage is {self.zero_stage}; accepted: 0, 1, 2, 3")


@dataclass(frozen=True)
class LearnerSettings:
    """One learner: how groups become updates."""

    advantage: Literal["mean_std", "mean", "leave_one_out"] = "mean_std"
    # reward minus group mean, over its standard deviation | mean alone (Dr. GRPO, DeepMMSearch-R1) | RLOO
    max_length: int = 8192
    # expanded tokens of one sequence; longer ones are cut at a segment's border
    micro_batch_tokens: int = 16384
    # padded tokens of one forward pass
    steps_per_batch: int = 1
    # optimizer steps made of one batch of groups; with 1 the proximal policy is the current one
    threads: int = 0
    # torch threads of a rank; 0 leaves torch's choice
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    backend: BackendSettings = field(default_factory=BackendSettings)

    def __post_init__(self) -> None:
        for name in ("max_length", "micro_batch_tokens", "steps_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: 1 or more")
