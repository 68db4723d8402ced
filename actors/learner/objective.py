"""Losses as pure functions over the flat trained tokens of one micro-batch.

    current    log-probs of the policy being trained, float32[n], carries the gradient
    proximal   the policy when the step began; `None`: the current one (one optimizer step a batch)
    behaviour  the policy that sampled, as the sampler reported it

    ratio r = exp(current - proximal)      -> the surrogate clips it
    weight w = exp(proximal - behaviour)   -> off-policy correction bounds it; no gradient flows through

Always true: tool, prompt and image tokens are not here at all, so no mean can contain them; every mean is
divided by a *global* count (`Counts`: of the whole step, over all micro-batches and ranks), so how a batch is
cut into micro-batches cannot change an update; a sequence lies whole in one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from actors.learner.settings import CorrectionSettings, ObjectiveSettings

if TYPE_CHECKING:
    from actors.model.batch import TokenBatch

LOG_RATIO_BOUND = 20.0  # exp(20) is 5e8: far outside every clip range, far inside float32


@dataclass(frozen=True)
class Counts:
    """Trained tokens and sequences of a whole optimizer step, over all micro-batches and ranks."""

    tokens: int
    sequences: int


@dataclass(frozen=True, eq=False)
class TokenTerms:
    """What a loss sees of one micro-batch: n trained tokens. All float32[n] unless said otherwise."""

    current: Tensor
    behaviour: Tensor
    advantages: Tensor
    sequence_ids: Tensor  # int64[n], 0 <= id < n_sequences
    n_sequences: int
    proximal: Tensor | None = None
    reference: Tensor | None = None  # of the frozen reference policy, when a KL is asked for


@dataclass(frozen=True, eq=False)
class LossTerms:
    """A micro-batch's share of the step's loss; `sums` and `maxima` combine over micro-batches and ranks."""

    loss: Tensor  # scalar; already divided by the global count
    sums: dict[str, Tensor]  # detached scalars
    maxima: dict[str, Tensor]  # their names end in _max


class Objective(Protocol):
    """What a backend minimises, one micro-batch at a time."""

    temperature: float  # divides the logits before `current` is taken

    def __call__(self, current: Tensor, batch: TokenBatch, counts: Counts) -> LossTerms:
        """current float32[n] with gradient, in the row-major order of `batch.loss_mask`."""
        ...


class PolicyObjective:
    """Policy gradient on a batch with extras `behaviour`, `advantages` (and `proximal`, `reference`)."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings
        self.temperature = settings.temperature

    def __call__(self, current: Tensor, batch: TokenBatch, counts: Counts) -> LossTerms:
        optional = {name: batch.flat(name) for name in ("proximal", "reference") if name in batch.extras}
        rows = batch.loss_mask.nonzero()[:, 0]
        terms = TokenTerms(
            current, batch.flat("behaviour"), batch.flat("advantages"), rows, len(batch.loss_mask), **optional
        )
        return policy_loss(terms, counts, self.settings)


class SupervisedObjective:
    """Cross entropy of the trained tokens; the extra `weights`, where there is one, weighs each token."""

    temperature = 1.0

    def __call__(self, current: Tensor, batch: TokenBatch, counts: Counts) -> LossTerms:
        return cross_entropy(current, batch.flat("weights") if "weights" in batch.extras else None, counts)


def policy_loss(terms: TokenTerms, counts: Counts, settings: ObjectiveSettings) -> LossTerms:
    """GRPO and its relatives.

    loss = -A(w * surrogate) + kl_coef * A(KL), with A the aggregation over the step. Non-finite inputs are
    masked and counted; a non-finite `current` also poisons the gradient, which the backend then refuses.
    """
    valid, current, behaviour, advantages = _finite(terms)
    proximal = _proximal(terms, current, behaviour, valid, settings)
    weight = correction_weight(proximal, behaviour, valid, terms, settings.correction)
    log_ratio = current - proximal
    if settings.ratio_level == "sequence":
        log_ratio = sequence_mean(log_ratio, valid, terms)[terms.sequence_ids]
    ratio = torch.exp(log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
    gain, clipped = surrogate(ratio, current, advantages, settings)
    per_token = -weight * gain
    divergence = torch.zeros_like(current)
    if settings.kl != "none":
        if terms.reference is None:
            raise ValueError(f"objective.kl is {settings.kl!r} but the batch has no reference log-probs")
        reference = torch.where(valid, terms.reference.detach(), torch.zeros_like(current))
        divergence = kl_estimate(current, reference, settings.kl)
        per_token = per_token + settings.kl_coef * divergence
    loss = aggregate(per_token, valid, terms, counts, settings)
    with torch.no_grad():
        sums, maxima = _metrics(valid, current, proximal, behaviour, ratio, weight, clipped, settings)
        sums["kl_reference"] = _sum(divergence, valid)
        sums["loss"] = loss.detach()
    return LossTerms(loss, sums, maxima)


def cross_entropy(current: Tensor, weights: Tensor | None, counts: Counts) -> LossTerms:
    """Mean negative log-likelihood (nats) over the step's trained tokens; current, weights float32[n]."""
    weighted = current if weights is None else current * weights
    loss = -weighted.sum() / max(counts.tokens, 1)
    detached = current.detach()
    sums = {
        "tokens": detached.new_tensor(float(len(detached))),
        "nonfinite": (~torch.isfinite(detached)).sum().float(),
        "loss": loss.detach(),
        "entropy_proxy": -detached.sum(),
    }
    return LossTerms(loss, sums, {})


def surrogate(ratio: Tensor, current: Tensor, advantages: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """Gain per token float32[n] and where the clip is what decides, bool[n].

    clip (PPO, eq. 7; asymmetric as in DAPO, eq. 8): min(r A, clip(r) A).
    cispo (MiniMax-M1, eq. 4): stop_gradient(clip(r)) A log p, so that clipped tokens keep a bounded gradient.
    """
    bounded = ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    outside = (ratio != bounded).detach()
    if settings.surrogate == "cispo":
        return bounded.detach() * advantages * current, outside
    plain, limited = ratio * advantages, bounded * advantages
    return torch.minimum(plain, limited), outside & (limited < plain).detach()


def correction_weight(
    proximal: Tensor, behaviour: Tensor, valid: Tensor, terms: TokenTerms, settings: CorrectionSettings
) -> Tensor:
    """Importance of the proximal policy against the behaviour policy, float32[n], without gradient.

    truncate: truncated importance sampling (IMPALA's rho-bar); mask: IcePop's two-sided window [1/cap, cap].
    """
    if settings.level == "none":
        return torch.ones_like(behaviour)
    with torch.no_grad():
        log_weight = torch.where(valid, proximal - behaviour, torch.zeros_like(behaviour))
        if settings.level == "sequence":
            total = log_weight.new_zeros(terms.n_sequences).index_add_(0, terms.sequence_ids, log_weight)
            log_weight = total[terms.sequence_ids]
        weight = torch.exp(log_weight.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
        if settings.mode == "truncate":
            return weight.clamp(max=settings.cap)
        inside = (weight <= settings.cap) & (weight >= 1.0 / settings.cap)
        return torch.where(inside, weight, torch.zeros_like(weight))


def kl_estimate(current: Tensor, reference: Tensor, kind: str) -> Tensor:
    """Per-token estimate of KL(current || reference), float32[n] (Schulman, "Approximating KL divergence").

    As a loss on on-policy samples, k1 has an expected gradient of 0 and k2 the true one; both papers use k3.
    """
    log_ratio = (reference - current).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return torch.exp(log_ratio) - 1.0 - log_ratio
    raise ValueError(f"unknown KL estimator {kind!r}; accepted: k1, k2, k3")


def aggregate(
    per_token: Tensor, valid: Tensor, terms: TokenTerms, counts: Counts, settings: ObjectiveSettings
) -> Tensor:
    """This micro-batch's share of the step's mean, a scalar."""
    kept = torch.where(valid, per_token, torch.zeros_like(per_token))
    if settings.aggregation == "token_mean":
        return kept.sum() / max(counts.tokens, 1)
    if settings.aggregation == "fixed_length":
        return kept.sum() / (max(counts.sequences, 1) * settings.fixed_length)
    return sequence_mean(kept, valid, terms).sum() / max(counts.sequences, 1)


def sequence_mean(values: Tensor, valid: Tensor, terms: TokenTerms) -> Tensor:
    """Mean over the valid tokens of each sequence, float32[n_sequences]; 0 where a sequence has none."""
    zeros = values.new_zeros(terms.n_sequences)
    total = zeros.index_add(0, terms.sequence_ids, torch.where(valid, values, torch.zeros_like(values)))
    lengths = zeros.index_add(0, terms.sequence_ids, valid.to(values.dtype))
    return total / lengths.clamp(min=1.0)


def _finite(terms: TokenTerms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which tokens are usable, and the inputs with the others zeroed before any arithmetic touches them."""
    inputs = [terms.current, terms.behaviour, terms.advantages]
    inputs += [t for t in (terms.proximal, terms.reference) if t is not None]
    valid = torch.stack([torch.isfinite(t.detach()) for t in inputs]).all(dim=0)
    zeros = torch.zeros_like(terms.current)
    current, behaviour, advantages = (torch.where(valid, t, zeros) for t in inputs[:3])
    return valid, current, behaviour.detach(), advantages.detach()


def _proximal(
    terms: TokenTerms, current: Tensor, behaviour: Tensor, valid: Tensor, settings: ObjectiveSettings
) -> Tensor:
    if settings.proximal == "behaviour":
        return behaviour
    if terms.proximal is None:
        return current.detach()
    return torch.where(valid, terms.proximal.detach(), torch.zeros_like(behaviour))


def _sum(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, torch.zeros_like(values)).sum()


def _metrics(
    valid: Tensor,
    current: Tensor,
    proximal: Tensor,
    behaviour: Tensor,
    ratio: Tensor,
    weight: Tensor,
    clipped: Tensor,
    settings: ObjectiveSettings,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums over valid tokens, named as the means that a step's statistics make of them."""
    start = current if settings.proximal == "behaviour" else proximal
    gap = (start - behaviour).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    sums = {
        "tokens": valid.sum().float(),
        "nonfinite": (~valid).sum().float(),
        "mismatch_kl": _sum(torch.exp(gap) - 1.0 - gap, valid),  # k3 of KL(behaviour || learner)
        "mismatch_abs": _sum(gap.abs(), valid),
        "clip_fraction": _sum(clipped.float(), valid),
        "ratio": _sum(ratio, valid),
        "entropy_proxy": _sum(-current, valid),
        "correction_weight": _sum(weight, valid),
        "correction_squared": _sum(weight.square(), valid),
        "correction_masked": _sum((weight == 0).float(), valid),
    }
    none = current.new_zeros(1)
    maxima = {
        "ratio_max": torch.cat([ratio[valid].detach(), none]).max(),
        "mismatch_abs_max": torch.cat([gap[valid].abs(), none]).max(),
    }
    return sums, maxima
