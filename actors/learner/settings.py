"""What can be configured about learning. Imports neither torch nor Ray, so `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from actors.weights.settings import PublishSettings

POSITIVE = {"ge": 1}
NOT_NEGATIVE = {"ge": 0}

Part = Literal["vision", "projector"]  # what of a model can be left untrained
Unlearned = Literal["over_long", "fatal_tool"]  # what of an episode can be left out of the loss


@dataclass(frozen=True)
class CorrectionSettings:
    """Off-policy correction: importance of the proximal policy against the one that sampled (behaviour)."""

    level: Literal["none", "token", "sequence"] = "token"
    # token: one weight per token; sequence: the product over a sequence, given to each of its tokens
    mode: Literal["truncate", "mask"] = "truncate"
    # truncate: min(weight, cap); mask: weights outside [1/cap, cap] become 0 (IcePop)
    cap: float = field(default=2.0, metadata={"ge": 1.0})
    # largest weight; below 1 it would shrink on-policy tokens (2 is verl's default)


@dataclass(frozen=True)
class ObjectiveSettings:
    """The policy-gradient loss: by default GRPO with DAPO's clip-higher and token mean."""

    surrogate: Literal["clip", "cispo"] = "clip"
    # clip: PPO's pessimistic minimum; cispo: clipped detached weight times log-prob (MiniMax-M1)
    ratio_level: Literal["token", "sequence"] = "token"
    # sequence: geometric-mean ratio of the whole sequence (GSPO); clip it with 3e-4 / 4e-4
    clip_low: float = field(default=0.2, metadata={"ge": 0.0, "le": 1.0})
    # ratios below 1 - clip_low are clipped (PPO); 1 leaves CISPO's lower side unbounded, as its paper does
    clip_high: float = field(default=0.28, metadata=NOT_NEGATIVE)
    # ratios above 1 + clip_high are clipped (DAPO)
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    # over the whole step and all ranks: DAPO | original GRPO | Dr. GRPO
    fixed_length: int = field(default=8192, metadata=POSITIVE)
    # tokens; the constant divisor of aggregation "fixed_length"
    proximal: Literal["learner", "behaviour"] = "learner"
    # denominator of the ratio: learner's own log-probs at the start of the step (decoupled), or the sampler's
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    # estimator of the divergence from a frozen reference (Schulman); k3 is the papers' "low-variance" one
    kl_coef: float = field(default=0.001, metadata=NOT_NEGATIVE)
    # weight of the divergence in the loss (both papers)
    reference_offload: bool = False
    # keep the frozen reference in the host's memory between steps (the papers do). Nothing to do on a CPU, nor with
    # lora, whose reference is the policy itself without its adapters
    temperature: float = field(default=1.0, metadata={"gt": 0.0})
    # divides the logits, as the sampler did

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.proximal == "behaviour" and self.correction.level != "none":
            raise ValueError(
                "proximal 'behaviour' already divides by the sampler's log-probs: set correction.level to none"
            )


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    # muon: Muon for matrices inside the layers, AdamW for the rest (plain engine only). From scratch, at the embedded
    # scale, it learns to copy in a quarter of AdamW's steps; for fine-tuning AdamW is what the papers use
    muon_lr: float = field(default=0.02, metadata=NOT_NEGATIVE)
    # peak learning rate of Muon's matrices; follows the same schedule
    lr: float = field(default=2e-6, metadata=NOT_NEGATIVE)
    # peak learning rate (both papers; the embedded model wants 1e-4 for RL, 2e-3 for SFT)
    beta1: float = field(default=0.9, metadata={"ge": 0.0, "lt": 1.0})
    # of the gradient's running mean (torch)
    beta2: float = field(default=0.999, metadata={"ge": 0.0, "lt": 1.0})
    # of the squared gradient's running mean (torch)
    eps: float = field(default=1e-8, metadata={"gt": 0.0})
    # added to the root of the latter (torch)
    weight_decay: float = field(default=0.01, metadata=NOT_NEGATIVE)
    # matrices only: biases and norms are left alone (veRL's default value)
    grad_clip: float = field(default=1.0, metadata=NOT_NEGATIVE)
    # global L2 norm; 0 turns it off (veRL)
    schedule: Literal["constant", "cosine", "linear_end", "hold_then_decay"] = "constant"
    # linear_end: constant, then straight down to the floor over the last `end` of the steps (warm-up, stable, decay);
    # hold_then_decay: (1-floor)/(1+exp((step-hold)/(hold/10))) + floor, the "45 steps" of both papers' script
    warmup_steps: int = field(default=0, metadata=NOT_NEGATIVE)
    # optimizer steps of linear rise from 0
    total_steps: int = field(default=0, metadata=NOT_NEGATIVE)
    # optimizer steps to the end of a cosine or linear_end; needed by those schedules alone
    end: float = field(default=0.3, metadata={"gt": 0.0, "le": 1.0})
    # share of the steps in which linear_end falls
    hold_steps: int = field(default=45, metadata=POSITIVE)
    # the step at which hold_then_decay has fallen half-way
    floor: float = field(default=0.05, metadata={"ge": 0.0, "le": 1.0})
    # smallest factor of the peak rate, for all but constant

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.schedule in ("cosine", "linear_end") and self.total_steps <= self.warmup_steps:
            raise ValueError(f"schedule {self.schedule} needs total_steps larger than warmup_steps")


@dataclass(frozen=True)
class BackendSettings:
    """The engine under the objective."""

    kind: Literal["deepspeed", "plain"] = "deepspeed"
    zero_stage: int = field(default=1, metadata={"ge": 0, "le": 3})
    # what DeepSpeed partitions across ranks: 0 nothing, 1 optimizer, 2 gradients too, 3 parameters too
    precision: Literal["fp32", "bf16"] = "bf16"
    # bf16 keeps fp32 master weights in the optimizer
    compile: bool = False
    # torch.compile of the language model; pays off in runs of many minutes on CPU
    activation_checkpointing: bool = False
    # keep only what enters each layer and compute the rest again in the backward pass: less memory, one more forward
    timeout_s: float = field(default=600.0, metadata={"gt": 0.0})
    # seconds until a collective with a dead rank gives up
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.optimizer.kind == "muon" and self.kind != "plain":
            raise ValueError("optimizer.kind muon needs kind plain: DeepSpeed is given AdamW")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters beside linear layers of the language model; only they are trained, and published merged."""

    rank: int = field(default=8, metadata=POSITIVE)
    # inner width of an adapter (DeepMMSearch-R1's SFT)
    alpha: float = field(default=16.0, metadata={"gt": 0.0})
    # an adapter's output counts alpha / rank times
    dropout: float = field(default=0.0, metadata={"ge": 0.0, "lt": 1.0})
    # of an adapter's input, in training passes alone; above 0 the learner's log-probs leave the sampler's
    targets: list[str] = field(default_factory=list)
    # names of linear layers, as q_proj; empty: all of the language model's layers (not its embedding and head)
    seed: int = field(default=0, metadata=NOT_NEGATIVE)
    # of the adapters' first values, so that all ranks begin alike


@dataclass(frozen=True)
class LearnerSettings:
    """One learner: how groups become updates."""

    advantage: Literal["mean_std", "mean", "leave_one_out"] = "mean_std"
    # reward minus group mean, over its standard deviation | mean alone (Dr. GRPO, DeepMMSearch-R1) | RLOO
    flat_groups: bool = False
    # learn from groups whose episodes all scored alike, too: their advantage is 0, but their tokens count in the means
    # and carry the KL term. GRPO sets it to the opposite of grpo.filter_zero_variance
    mask: list[Unlearned] = field(default_factory=list)
    # left out of the loss, though its reward stays in the group's baseline: over_long, an episode that ran out of
    # tokens (DAPO); fatal_tool, what was said after a tool's failure that no fault of the policy was (OpenSearch-VL)
    max_length: int = field(default=8192, metadata=POSITIVE)
    # expanded tokens of one sequence; longer ones are cut at a segment's border
    micro_batch_tokens: int = field(default=16384, metadata=POSITIVE)
    # padded tokens of one forward pass
    steps_per_batch: int = field(default=1, metadata=POSITIVE)
    # optimizer steps made of one batch of groups; with 1 the proximal policy is the current one
    threads: int = field(default=0, metadata=NOT_NEGATIVE)
    # torch threads of a rank; 0 leaves torch's choice
    freeze: list[Part] = field(default_factory=list)
    # parts that stay as they are: vision (the tower without its projector), projector. With lora all but the adapters
    lora: LoraSettings | None = None
    # low-rank adapters in place of the weights themselves; null trains the weights
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    backend: BackendSettings = field(default_factory=BackendSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    # how new weights get to the samplers

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.lora is not None and self.backend.optimizer.kind == "muon":
            raise ValueError("backend.optimizer.kind muon is for whole matrices: lora needs adamw")
