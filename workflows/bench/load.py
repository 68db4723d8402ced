"""What a bench of rollouts is asked to do. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """How much is played, and how often."""

    episodes: int = 512
    # of one pass; the four waves of 128 leave a tail, which is part of the measurement
    concurrency: int = 128
    # episodes of the rollout, requests of the bare engine, at a time
    rounds: int = 4
    # passes of each side, in alternation
    profile: bool = False
    # one further rollout pass, under cProfile, that no ratio is made from
