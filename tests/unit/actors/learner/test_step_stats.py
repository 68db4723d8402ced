"""What several optimizer steps of one batch say together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from actors.learner.backends.protocol import StepStats, together

REFUSED = "the gradient is not finite"
ONE = StepStats(
    step=1, loss=1.0, lr=1e-3, grad_norm=2.0, tokens=100, sequences=4, micro_batches=2, seconds=3.0,
    metrics={"tokens": 99.0, "nonfinite": 1.0, "kl_reference": 0.1, "ratio_max": 5.0},
)  # fmt: skip
TWO = StepStats(
    step=2, loss=4.0, lr=2e-3, grad_norm=5.0, tokens=50, sequences=2, micro_batches=1, seconds=1.0,
    metrics={"tokens": 50.0, "nonfinite": 0.0, "kl_reference": 0.4, "ratio_max": 2.0},
)  # fmt: skip
BROKEN = replace(
    ONE, step=0, loss=math.nan, grad_norm=math.inf, skipped=REFUSED, metrics=ONE.metrics | {"kl_reference": math.nan}
)


def test_one_step_says_what_it_said():
    assert together([ONE]) == replace(ONE, metrics=ONE.metrics | {"steps_skipped": 0.0})


def test_counts_and_seconds_are_added_means_weighed_by_tokens_and_the_largest_stays():
    both = together([ONE, TWO])
    assert (both.step, both.lr) == (2, 2e-3)
    assert (both.tokens, both.sequences, both.micro_batches, both.seconds) == (150, 6, 3, 4.0)
    assert both.loss == pytest.approx(2.0)
    assert both.grad_norm == pytest.approx(3.0)
    assert both.metrics["kl_reference"] == pytest.approx(0.2)
    assert both.metrics["ratio_max"] == 5.0
    assert (both.metrics["tokens"], both.metrics["nonfinite"]) == (149.0, 1.0)
    assert (both.skipped, both.metrics["steps_skipped"]) == ("", 0.0)
    assert both.numbers()["tokens"] == 149.0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_step_that_was_refused_leaves_a_trace_wherever_it_stood_and_spoils_no_mean(place):
    steps = [ONE, TWO]
    steps.insert(place, BROKEN)
    done = together(steps)
    assert done.skipped == REFUSED
    assert done.numbers()["skipped"] == done.numbers()["steps_skipped"] == 1.0
    assert (done.tokens, done.sequences) == (250, 10)
    assert done.loss == pytest.approx(2.0)
    assert done.metrics["kl_reference"] == pytest.approx(0.2)
    assert math.isfinite(done.grad_norm)


def test_when_all_were_refused_their_numbers_are_shown_as_they_are():
    done = together([BROKEN, replace(BROKEN, skipped="another reason")])
    assert math.isnan(done.loss)
    assert done.skipped == REFUSED
    assert done.metrics["steps_skipped"] == 2.0
