"""The losses against a slow, obvious float64 reference, hand-worked values, and numerical gradients."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from actors.learner.objective import (
    Counts,
    TokenTerms,
    correction_weight,
    cross_entropy,
    kl_estimate,
    policy_loss,
)
from actors.learner.settings import CorrectionSettings, ObjectiveSettings

LENGTHS = [3, 1, 4]


def make_terms(seed: int = 0, spread: float = 0.4, proximal: bool = True) -> TokenTerms:
    generator = torch.Generator().manual_seed(seed)
    n = sum(LENGTHS)
    behaviour = -torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 0.1

    def near() -> torch.Tensor:
        return behaviour + spread * torch.randn(n, generator=generator, dtype=torch.float64)

    rows = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    advantages = torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64)[rows]
    return TokenTerms(
        current=near(),
        behaviour=behaviour,
        advantages=advantages,
        sequence_ids=rows,
        n_sequences=len(LENGTHS),
        proximal=near() if proximal else None,
        reference=near(),
    )


def sequences_of(terms: TokenTerms) -> list[list[int]]:
    ids = terms.sequence_ids.tolist()
    return [[i for i, row in enumerate(ids) if row == s] for s in range(terms.n_sequences)]


def slow_weight(terms: TokenTerms, i: int, members: list[int], s: CorrectionSettings) -> float:
    assert terms.proximal is not None
    if s.level == "none":
        return 1.0
    among = members if s.level == "sequence" else [i]
    w = math.exp(sum(float(terms.proximal[j] - terms.behaviour[j]) for j in among))
    if s.mode == "truncate":
        return min(w, s.cap)
    return w if 1 / s.cap <= w <= s.cap else 0.0


def slow_loss(terms: TokenTerms, counts: Counts, s: ObjectiveSettings, held: TokenTerms | None = None) -> float:
    """Every token by hand, in Python floats. CISPO's clipped weight is taken from `held`, where that is given."""
    total = 0.0
    held = held or terms
    for members in sequences_of(terms):
        losses = []
        for i in members:
            prox = terms.behaviour if s.proximal == "behaviour" else terms.proximal
            assert prox is not None
            assert terms.reference is not None
            among = members if s.ratio_level == "sequence" else [i]
            r = math.exp(sum(float(terms.current[j] - prox[j]) for j in among) / len(among))
            bounded = min(max(r, 1 - s.clip_low), 1 + s.clip_high)
            a, logp = float(terms.advantages[i]), float(terms.current[i])
            if s.surrogate == "cispo":
                r = math.exp(sum(float(held.current[j] - prox[j]) for j in among) / len(among))
                gain = min(max(r, 1 - s.clip_low), 1 + s.clip_high) * a * logp
            else:
                gain = min(r * a, bounded * a)
            loss = -slow_weight(terms, i, members, s.correction) * gain
            if s.kl != "none":
                d = float(terms.reference[i]) - logp
                loss += s.kl_coef * {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - 1 - d}[s.kl]
            losses.append(loss)
        if s.aggregation == "sequence_mean":
            total += sum(losses) / len(losses) / counts.sequences
        elif s.aggregation == "token_mean":
            total += sum(losses) / counts.tokens
        else:
            total += sum(losses) / (counts.sequences * s.fixed_length)
    return total


VARIANTS = [
    ObjectiveSettings(
        surrogate=surrogate, ratio_level=ratio, aggregation=aggregation, fixed_length=64, kl=kl, kl_coef=0.3,
        correction=CorrectionSettings(level, mode, 1.2),  # pyright: ignore[reportArgumentType]
    )
    for surrogate, ratio, aggregation, (level, mode), kl in itertools.product(
        ("clip", "cispo"),
        ("token", "sequence"),
        ("token_mean", "sequence_mean", "fixed_length"),
        [("none", "truncate"), *itertools.product(("token", "sequence"), ("truncate", "mask"))],
        ("none", "k1", "k2", "k3"),
    )
]  # fmt: skip


@pytest.mark.parametrize("spread", [0.05, 0.6])
def test_every_variant_agrees_with_the_slow_reference(spread):
    counts = Counts(tokens=11, sequences=5)
    for settings in VARIANTS:
        terms = make_terms(seed=3, spread=spread)
        got = float(policy_loss(terms, counts, settings).loss)
        assert got == pytest.approx(slow_loss(terms, counts, settings), rel=1e-9, abs=1e-12), settings


def test_the_ratio_may_be_taken_against_the_sampler_itself():
    settings = ObjectiveSettings(proximal="behaviour", correction=CorrectionSettings("none"))
    terms, counts = make_terms(5), Counts(8, 3)
    assert float(policy_loss(terms, counts, settings).loss) == pytest.approx(slow_loss(terms, counts, settings))


def test_every_gradient_is_that_of_the_slow_reference():
    """Along random directions, by central differences; what no gradient may flow through is held."""
    counts, step = Counts(tokens=11, sequences=5), 1e-6
    directions = torch.randn((2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for settings in VARIANTS:
        terms = make_terms(seed=7, spread=0.3)
        current = terms.current.clone().requires_grad_()
        policy_loss(replace(terms, current=current), counts, settings).loss.backward()
        assert current.grad is not None
        for direction in directions:
            above, below = (
                slow_loss(replace(terms, current=moved), counts, settings, held=terms)
                for moved in (terms.current + step * direction, terms.current - step * direction)
            )
            expected = (above - below) / (2 * step)
            assert float(current.grad @ direction) == pytest.approx(expected, rel=1e-5, abs=1e-8), settings


def test_without_proximal_the_correction_is_that_of_the_current_policy():
    counts = Counts(8, 3)
    for settings in VARIANTS:
        terms = make_terms(9, proximal=False)
        stated = replace(terms, proximal=terms.current)
        assert float(policy_loss(terms, counts, settings).loss) == pytest.approx(slow_loss(stated, counts, settings))


def test_cispo_gives_clipped_tokens_a_bounded_gradient():
    current = torch.tensor([0.0, -0.1, -3.0], dtype=torch.float64, requires_grad=True)
    terms = TokenTerms(
        current,
        behaviour=torch.tensor([-1.0, -0.1, -1.0], dtype=torch.float64),
        advantages=torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64),
        sequence_ids=torch.tensor([0, 0, 1]),
        n_sequences=2,
        proximal=torch.tensor([-1.0, -0.1, -1.0], dtype=torch.float64),
    )
    settings = ObjectiveSettings(surrogate="cispo", correction=CorrectionSettings("none"))
    policy_loss(terms, Counts(3, 2), settings).loss.backward()
    # -(clip(ratio) * advantage) / 3 with ratios e, 1, e^-2 clipped to 1.28, 1, 0.8
    assert current.grad is not None
    torch.testing.assert_close(current.grad, torch.tensor([-1.28 * 2 / 3, -1 / 3, 0.8 / 3], dtype=torch.float64))


def test_without_proximal_one_step_is_the_plain_policy_gradient():
    terms = make_terms(1, proximal=False)
    current = terms.current.clone().requires_grad_()
    terms = TokenTerms(current, current.detach().clone(), terms.advantages, terms.sequence_ids, 3)
    result = policy_loss(terms, Counts(8, 3), ObjectiveSettings())
    result.loss.backward()
    torch.testing.assert_close(current.grad, -terms.advantages / 8)
    assert float(result.sums["ratio"]) == 8
    assert float(result.sums["clip_fraction"]) == 0
    assert float(result.sums["mismatch_kl"]) == pytest.approx(0)


def test_the_clip_is_asymmetric_and_pessimistic():
    """Hand-worked: ratio 1.5 with A > 0 is held at 1.28; ratio 0.5 with A > 0 is not clipped."""
    logs = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64))
    zeros = torch.zeros(4, dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    terms = TokenTerms(logs, zeros, advantages, torch.arange(4), 4, proximal=zeros)
    result = policy_loss(terms, Counts(4, 4), ObjectiveSettings(correction=CorrectionSettings("none")))
    assert float(result.loss) == pytest.approx(-(1.28 + 0.5 - 1.5 - 0.8) / 4)
    assert float(result.sums["clip_fraction"]) == 2
    assert float(result.maxima["ratio_max"]) == pytest.approx(1.5)


def test_gspo_clips_the_geometric_mean_of_a_sequence():
    """GSPO (eq. 7): ratios 2 and 1/2 have the mean 1, so nothing is clipped; 1.21 and 1 have 1.1, which is."""
    logs = torch.log(torch.tensor([2.0, 0.5, 1.21, 1.0], dtype=torch.float64)).requires_grad_()
    zeros = torch.zeros(4, dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    terms = TokenTerms(logs, zeros, advantages, torch.tensor([0, 0, 1, 1]), 2, proximal=zeros)
    settings = ObjectiveSettings(
        ratio_level="sequence", clip_low=0.05, clip_high=0.05, aggregation="sequence_mean",
        correction=CorrectionSettings("none"),
    )  # fmt: skip
    result = policy_loss(terms, Counts(4, 2), settings)
    assert float(result.loss.detach()) == pytest.approx(-(1.0 * 1 + 1.05 * 3) / 2)
    assert float(result.sums["clip_fraction"]) == 2
    result.loss.backward()
    assert logs.grad is not None
    # the first sequence: -ratio * A / length / sequences for each token, whatever its own ratio
    torch.testing.assert_close(logs.grad, torch.tensor([-0.25, -0.25, 0, 0], dtype=torch.float64))


def test_aggregations_by_hand():
    """A sequence of one token with loss -4 and one of three with -1 each: the mean of DAPO, GRPO and Dr. GRPO."""
    zeros = torch.zeros(4, dtype=torch.float64)
    advantages = torch.tensor([4.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    terms = TokenTerms(zeros, zeros, advantages, torch.tensor([0, 1, 1, 1]), 2)

    def loss(aggregation):
        settings = ObjectiveSettings(aggregation=aggregation, fixed_length=10)
        return float(policy_loss(terms, Counts(4, 2), settings).loss)

    assert loss("token_mean") == pytest.approx(-7 / 4)
    assert loss("sequence_mean") == pytest.approx(-(4 + 1) / 2)
    assert loss("fixed_length") == pytest.approx(-7 / 20)


def test_correction_weights_by_hand():
    logs = torch.log(torch.tensor([3.0, 0.25, 1.5], dtype=torch.float64))
    zeros = torch.zeros(3, dtype=torch.float64)
    terms = TokenTerms(zeros, zeros, zeros, torch.tensor([0, 0, 1]), 2, proximal=logs)
    valid = torch.ones(3, dtype=torch.bool)

    def weights(level, mode):
        return correction_weight(logs, zeros, valid, terms, CorrectionSettings(level, mode, 2.0)).tolist()

    assert weights("none", "truncate") == [1, 1, 1]
    assert weights("token", "truncate") == pytest.approx([2, 0.25, 1.5])
    assert weights("token", "mask") == pytest.approx([0, 0, 1.5])
    assert weights("sequence", "truncate") == pytest.approx([0.75, 0.75, 1.5])
    assert weights("sequence", "mask") == pytest.approx([0.75, 0.75, 1.5])


def test_a_nonfinite_behaviour_is_masked_and_counted():
    terms = make_terms(2)
    spoiled = terms.behaviour.clone()
    spoiled[1] = float("-inf")
    spoiled[4] = float("nan")
    current = terms.current.clone().requires_grad_()
    bad = TokenTerms(current, spoiled, terms.advantages, terms.sequence_ids, 3, terms.proximal)
    result = policy_loss(bad, Counts(8, 3), ObjectiveSettings())
    result.loss.backward()
    assert current.grad is not None
    assert torch.isfinite(result.loss)
    assert current.grad[[1, 4]].tolist() == [0, 0]
    assert float(result.sums["nonfinite"]) == 2
    assert float(result.sums["tokens"]) == 6
    assert all(torch.isfinite(v) for v in [*result.sums.values(), *result.maxima.values()])


def test_a_nonfinite_current_is_counted_too():
    terms = make_terms(2)
    current = terms.current.clone()
    current[0] = float("nan")
    result = policy_loss(
        TokenTerms(current, terms.behaviour, terms.advantages, terms.sequence_ids, 3),
        Counts(8, 3), ObjectiveSettings(),
    )  # fmt: skip
    assert float(result.sums["nonfinite"]) == 1
    assert torch.isfinite(result.loss)


def test_extreme_ratios_stay_finite():
    n = torch.full((2,), -900.0)
    terms = TokenTerms(torch.zeros(2), n, torch.tensor([1.0, -1.0]), torch.tensor([0, 1]), 2, proximal=n)
    for settings in VARIANTS:
        with_reference = TokenTerms(terms.current, n, terms.advantages, terms.sequence_ids, 2, n, reference=n)
        assert torch.isfinite(policy_loss(with_reference, Counts(2, 2), settings).loss), settings


@given(cut=st.integers(0, 2), seed=st.integers(0, 50), variant=st.sampled_from(VARIANTS))
@hypothesis_settings(max_examples=60, deadline=None)
def test_cutting_a_step_into_micro_batches_changes_nothing(cut, seed, variant):
    terms, counts = make_terms(seed), Counts(8, 3)
    whole = policy_loss(terms, counts, variant)

    def part(keep):
        fields = [terms.current, terms.behaviour, terms.advantages, terms.sequence_ids]
        current, behaviour, advantages, ids = (t[keep] for t in fields)
        assert terms.proximal is not None
        assert terms.reference is not None
        return policy_loss(
            TokenTerms(current, behaviour, advantages, ids, 3, terms.proximal[keep], terms.reference[keep]),
            counts,
            variant,
        )

    parts = [part(terms.sequence_ids <= cut), part(terms.sequence_ids > cut)]
    assert float(sum(p.loss for p in parts)) == pytest.approx(float(whole.loss), abs=1e-12)
    for name, value in whole.sums.items():
        assert float(sum(p.sums[name] for p in parts)) == pytest.approx(float(value), abs=1e-9), name
    for name, value in whole.maxima.items():
        assert max(float(p.maxima[name]) for p in parts) == pytest.approx(float(value)), name


def test_kl_estimators_by_hand():
    current, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert kl_estimate(current, reference, "k1").item() == pytest.approx(0.5)
    assert kl_estimate(current, reference, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(current, reference, "k3").item() == pytest.approx(math.exp(-0.5) - 0.5)


def test_kl_gradients_by_hand():
    """d/d current: k1 is 1 wherever it stands, k2 the log ratio, k3 one minus the ratio reference / current."""

    def gradient(kind):
        current = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
        kl_estimate(current, torch.tensor([-1.5, -1.0], dtype=torch.float64), kind).sum().backward()
        assert current.grad is not None
        return current.grad.tolist()

    assert gradient("k1") == [1.0, 1.0]
    assert gradient("k2") == pytest.approx([0.5, -1.0])
    assert gradient("k3") == pytest.approx([1 - math.exp(-0.5), 1 - math.e])


def test_a_kl_without_reference_is_refused():
    terms = make_terms(0)
    bare = TokenTerms(terms.current, terms.behaviour, terms.advantages, terms.sequence_ids, 3)
    with pytest.raises(ValueError, match="no reference"):
        policy_loss(bare, Counts(8, 3), ObjectiveSettings(kl="k3"))


def test_cross_entropy_is_the_weighted_mean_over_the_global_count():
    current = torch.tensor([-1.0, -3.0], requires_grad=True)
    result = cross_entropy(current, torch.tensor([1.0, 0.5]), Counts(4, 2))
    result.loss.backward()
    assert result.loss.item() == pytest.approx((1 + 1.5) / 4)
    torch.testing.assert_close(current.grad, torch.tensor([-0.25, -0.125]))
    assert cross_entropy(current, None, Counts(2, 1)).loss.item() == pytest.approx(2)
