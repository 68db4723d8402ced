"""One rank of a learner in a process of its own, through several settings one after the other."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.agent.trajectory import Trajectory
from actors.learner.settings import LearnerSettings
from tests.integration.actors.learner.episodes import MemoryImages

Steps = Sequence[Sequence[Sequence[Trajectory]]]  # of groups, a batch of them a step


def train_all(
    rank: int,
    world: int,
    port: int,
    model: str,
    variants: Mapping[str, tuple[LearnerSettings, Steps]],
    images: MemoryImages,
    out: str,
) -> None:
    """Rank 0 leaves `out/<variant>.pt`: weights before and after, and each step's statistics; any, its failure."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from transformers.utils import logging

    from actors.learner.backends.ranks import Ranks, join
    from actors.learner.learner import Learner

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    ranks = join(Ranks(rank, world), address="127.0.0.1", port=port, timeout_s=120)
    for name, (settings, steps) in variants.items():
        try:
            learner = Learner(model, settings, images, f"{out}/weights-{name}", ranks)
            before = _published(learner, 0)
            stats = [learner.train(groups, version=0) for groups in steps]
            after = _published(learner, 1)
            learner.close()
        except Exception:
            Path(out, f"{name}.rank{rank}.failed").write_text(traceback.format_exc())
            return  # the others wait in a collective, so the group is of no more use
        if rank == 0:
            torch.save({"before": before, "after": after, "stats": [s.numbers() for s in stats]}, f"{out}/{name}.pt")


def _published(learner, version: int) -> dict:
    from actors.weights.transport import FolderTransport

    ticket = learner.publish(version)
    return dict(FolderTransport(Path(ticket.folder)).receive(ticket)) if ticket else {}
