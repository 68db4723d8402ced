"""Learning rate by optimizer step: a pure function, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from actors.learner.settings import OptimizerSettings


def learning_rate(step: int, settings: OptimizerSettings) -> float:
    """The rate of optimizer step `step` (the first is 0): the schedule's factor of the peak, times the warm-up's.

    hold_then_decay is the original code's "lr_sigmoid_decay_warmup": (1 - floor) / (1 + e^((step - hold) /
    (hold / 10))) + floor, close to 1 until `hold_steps` and at the floor soon after (papers, section 5).
    """
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.lr * rise * _factor(step, settings)


def _factor(step: int, settings: OptimizerSettings) -> float:
    span = 1.0 - settings.floor
    if settings.schedule == "cosine":
        length = settings.total_steps - settings.warmup_steps
        done = min(max(step - settings.warmup_steps, 0) / length, 1.0)
        return settings.floor + span * 0.5 * (1.0 + math.cos(math.pi * done))
    if settings.schedule == "linear_end":
        left = (settings.total_steps - step) / (settings.end * settings.total_steps)
        return settings.floor + span * min(max(left, 0.0), 1.0)
    if settings.schedule == "hold_then_decay":
        exponent = (step - settings.hold_steps) / (settings.hold_steps / 10.0)
        return settings.floor + span / (1.0 + math.exp(min(exponent, 700.0)))
    return 1.0
