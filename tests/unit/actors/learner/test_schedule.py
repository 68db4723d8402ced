"""Learning rates by step."""

from __future__ import annotations

import pytest

from actors.learner.schedule import learning_rate
from actors.learner.settings import OptimizerSettings


def test_constant_with_warmup_rises_and_stays():
    settings = OptimizerSettings(lr=4.0, warmup_steps=4)
    assert [learning_rate(step, settings) for step in range(6)] == [1, 2, 3, 4, 4, 4]


def test_cosine_ends_at_its_floor():
    settings = OptimizerSettings(lr=1.0, schedule="cosine", total_steps=10, floor=0.1)
    assert learning_rate(0, settings) == 1
    assert learning_rate(5, settings) == pytest.approx(0.55)
    assert learning_rate(10, settings) == pytest.approx(0.1)
    assert learning_rate(1000, settings) == pytest.approx(0.1)


def test_hold_then_decay_is_the_papers_schedule():
    """papers.md section 5: about 2e-6 early, 1.05e-6 at step 45, about 5.7e-7 at 50, 1e-7 in the end."""
    settings = OptimizerSettings(lr=2e-6, schedule="hold_then_decay")
    assert learning_rate(0, settings) == pytest.approx(2e-6, rel=1e-3)
    assert learning_rate(45, settings) == pytest.approx(1.05e-6)
    assert learning_rate(50, settings) == pytest.approx(5.7e-7, rel=0.02)
    assert learning_rate(10_000, settings) == pytest.approx(1e-7)


def test_linear_end_stays_and_then_falls_in_a_line():
    settings = OptimizerSettings(lr=1.0, schedule="linear_end", total_steps=10, end=0.4, floor=0.1)
    assert [learning_rate(step, settings) for step in range(7)] == [1.0] * 7
    assert learning_rate(8, settings) == pytest.approx(0.55)
    assert learning_rate(10, settings) == learning_rate(1000, settings) == pytest.approx(0.1)
