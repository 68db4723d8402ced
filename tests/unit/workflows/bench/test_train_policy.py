"""Batches for the bench of the GRPO step: the configured size, and something to teach in each group."""

from __future__ import annotations

import random

import pytest

from actors.agent.trajectory import Ending, RewardParts, Trajectory
from workflows.bench.train import positions
from workflows.bench.train_policy import BATCHES, Batch, PolicySteps, draw_groups


def episodes(rewards):
    return [
        Trajectory(f"q{i}", 0, (), (), Ending.ANSWERED, reward=RewardParts(total, total, 0.0, 1.0, 0))
        for i, total in enumerate(rewards)
    ]


@pytest.mark.parametrize("kept", [5, 40, 200])
def test_groups_have_the_configured_size_however_many_episodes_were_kept(kept):
    groups = draw_groups(episodes([random.Random(i).random() for i in range(kept)]), groups=6, size=4, seed=0)
    assert [len(group) for group in groups] == [4] * 6


def test_each_group_has_episodes_of_different_scores():
    groups = draw_groups(episodes([0.0] * 30 + [1.0] * 10), groups=8, size=5, seed=3)
    assert all(len({it.reward.total for it in group}) == 2 for group in groups)


def test_no_episode_is_drawn_twice_while_there_are_others():
    groups = draw_groups(episodes([i / 24 for i in range(24)]), groups=4, size=6, seed=1)
    assert len({it.question_id for group in groups for it in group}) == 24


def test_another_seed_draws_others():
    many = episodes([i / 200 for i in range(200)])
    first, second = (draw_groups(many, groups=2, size=4, seed=seed) for seed in (0, 1))
    assert {it.question_id for g in first for it in g} != {it.question_id for g in second for it in g}


@pytest.mark.parametrize("steps", [45, 80, 160])
def test_every_batch_is_trained_on_whichever_steps_of_the_stage_are_timed(steps):
    class Learner:
        def __init__(self):
            self.seen = []

        def train(self, groups, version):
            self.seen.append(len(groups))

    learner = Learner()
    batches = [Batch([[]] * n, tokens=n, flops=10 * n) for n in range(BATCHES)]
    made = PolicySteps(learner, batches)  # pyright: ignore[reportArgumentType]
    for number in positions(steps, 20):
        made.step(number)
        assert (made.tokens, made.flops) == (learner.seen[-1], 10 * learner.seen[-1])
    assert [learner.seen.count(n) for n in range(BATCHES)] == [5] * 4
