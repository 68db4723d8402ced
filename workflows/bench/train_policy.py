"""The GRPO step for `mmsearch bench train`: the policy learner on episodes that a run was trained on, without Ray.

A run keeps some episodes of each step (`grpo.trajectories_per_step`). Batches of the configured size are drawn from
them: the real mix of lengths and pictures, tokens, log-probs and rewards, but groups are thrown together, so that every
episode has something to teach. The pictures come from the run's blobs; nothing is written there.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from actors.agent.trajectory import Trajectory
from actors.learner.batch import train_sequences
from actors.learner.learner import Learner
from actors.learner.settings import LearnerSettings
from actors.model.load import local_model
from actors.model.pixels import Pixels
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.bench.flops import TRAINING, Shape, forward_flops
from workflows.grpo.plan import plan_of
from workflows.grpo.recorder import training_steps
from workflows.grpo.records import trajectory_from

BATCHES = 4  # different ones, in turn


@dataclass(frozen=True)
class Batch:
    """Groups of episodes, and the arithmetic of one step on them."""

    groups: list[list[Trajectory]]
    tokens: int  # non-padding, pictures expanded
    flops: int  # that they need, forward and backward


class PolicySteps:
    """`step(number)` trains on the next batch; `tokens` and `flops` tell what that step was made of."""

    def __init__(self, learner: Learner, batches: Sequence[Batch]) -> None:
        self._learner, self._batches = learner, itertools.cycle(batches)
        self.tokens = self.flops = 0

    def step(self, number: int) -> Any:
        batch = next(self._batches)  # not by `number`: of steps that are evenly spaced it may choose one batch alone
        done = self._learner.train(batch.groups, version=0)
        self.tokens, self.flops = batch.tokens, batch.flops
        return done


def check(settings: Any) -> None:
    """Raise `UserError` where there is no model, or nothing to train it on."""
    plan = plan_of(settings)
    plan.check()
    again = f"run `mmsearch demo run.name={settings.run.name}` first"
    if not Folder(plan.model).exists("config.json"):
        raise UserError(f"The GRPO bench starts from the model at {plan.model}, which is not there: {again}.")
    if not kept_files(plan.folder):
        raise UserError(f"The GRPO bench trains on episodes that a run kept, and {plan.folder} has none: {again}.")


def prepare(settings: Any, scratch: Path) -> tuple[Callable[[int], Any], PolicySteps]:
    """The learner of the run's configuration, on one rank, and its batches."""
    from transformers import AutoConfig

    plan = plan_of(settings)
    episodes = kept_episodes(plan.folder, kept_files(plan.folder))
    source = local_model(plan.start_model)
    counted = Counted(plan.learner, AutoConfig.from_pretrained(source), Pixels.load(source, plan.images))
    batches = [
        counted.batch(draw_groups(episodes, plan.grpo.groups_per_step, plan.grpo.group_size, seed))
        for seed in range(BATCHES)
    ]
    learner = Learner(plan.start_model, plan.learner, plan.images, str(scratch / "weights"))
    steps = PolicySteps(learner, batches)
    return steps.step, steps


def kept_files(folder: Folder) -> list[str]:
    """Parquet files of episodes, of the steps that were made."""
    names = [f"trajectories/step-{int(line['step']):06d}.parquet" for line in training_steps(folder)]
    return [name for name in names if folder.exists(name)]


def kept_episodes(folder: Folder, names: Sequence[str]) -> list[Trajectory]:
    """Those that were scored."""
    records = [
        record
        for name in names
        for record in pq.read_table(folder.open(name), columns=["record"])["record"].to_pylist()
    ]
    episodes = [trajectory_from(json.loads(record)) for record in records]
    return [episode for episode in episodes if episode.reward is not None]


def draw_groups(episodes: Sequence[Trajectory], groups: int, size: int, seed: int) -> list[list[Trajectory]]:
    """Drawn from all, without replacement as long as there are enough; in each group some score differently."""
    draw = random.Random(seed)
    pool: list[Trajectory] = []
    while len(pool) < groups * size:
        pool += draw.sample(episodes, len(episodes))
    by_reward = sorted(pool[: groups * size], key=lambda it: it.reward.total if it.reward else 0.0)
    return [by_reward[i::groups] for i in range(groups)]


@dataclass(frozen=True)
class Counted:
    """Counts beforehand what the learner will make of groups."""

    settings: LearnerSettings
    config: Any  # of the model
    pixels: Pixels

    def batch(self, groups: list[list[Trajectory]]) -> Batch:
        """Groups with their tokens and FLOPs."""
        sequences, _ = train_sequences(
            groups,
            advantage=self.settings.advantage,
            image_token_id=int(self.config.image_token_id),
            max_length=self.settings.max_length,
            version=0,
            mask=self.settings.mask,
            flat_groups=self.settings.flat_groups,
        )
        shape = Shape.of(self.config)
        lengths = [len(one.expanded) for one in sequences]
        targets = sum(int(one.expanded.loss_mask[1:].sum()) for one in sequences)
        pictures = {ref for one in sequences for ref in one.expanded.images}
        patches = [self.pixels.n_tokens(ref) * shape.merge**2 for ref in pictures]
        return Batch(groups, sum(lengths), TRAINING * forward_flops(shape, lengths, targets, patches))
