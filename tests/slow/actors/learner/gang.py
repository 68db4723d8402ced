"""One rank of a learner in a process of its own, through several settings one after the other."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from actors.agent.trajectory import Trajectory
from actors.learner.settings import LearnerSettings
from tests.full_disk import files_of_at_most
from tests.integration.actors.learner.episodes import MemoryImages

Steps = Sequence[Sequence[Sequence[Trajectory]]]  # of groups, a batch of them a step
GIVE_UP_S = 900.0  # for all variants on a busy machine


@dataclass(frozen=True)
class Task:
    """What one learner does: it continues from a checkpoint or begins, makes steps, and may leave a checkpoint."""

    settings: LearnerSettings
    steps: Steps
    load: str = ""
    save: str = ""
    full_disk_of: int = -1  # the rank that cannot write more than a few bytes of a file when it saves


def run_gang(world: int, model: str, tasks: Mapping[str, Task], images: MemoryImages, out: Path) -> Path:
    """All tasks, one after the other, on `world` ranks in processes of their own; returns `out`."""
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=train_all, args=(rank, world, port, model, tasks, images, str(out)))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + GIVE_UP_S
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
            rank.join()
    return out


def train_all(
    rank: int, world: int, port: int, model: str, tasks: Mapping[str, Task], images: MemoryImages, out: str
) -> None:
    """Rank 0 leaves `out/<name>.pt`: weights before and after, and each step's statistics; any, its failure."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from transformers.utils import logging

    from actors.learner.backends.ranks import Ranks, join
    from actors.learner.learner import Learner

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    ranks = join(Ranks(rank, world), address="127.0.0.1", port=port, timeout_s=120)
    for name, task in tasks.items():
        try:
            learner = Learner(model, task.settings, images, f"{out}/weights-{name}", ranks)
            if task.load:
                learner.load(task.load)
            before = _published(learner, 0)
            stats = [learner.train(groups, version=0) for groups in task.steps]
            after = _published(learner, 1)
            refused = _saved(learner, task, rank) if task.save else ""
            learner.close()
        except Exception:
            Path(out, f"{name}.rank{rank}.failed").write_text(traceback.format_exc())
            return  # the others wait in a collective, so the group is of no more use
        Path(out, f"{name}.rank{rank}.refused").write_text(refused)
        if rank == 0:
            torch.save({"before": before, "after": after, "stats": [s.numbers() for s in stats]}, f"{out}/{name}.pt")


def _saved(learner, task: Task, rank: int) -> str:
    """What the disk refused, on a disk that is full for one rank; an error on any other is the caller's."""
    if task.full_disk_of < 0:
        learner.save(task.save)
        return ""
    with files_of_at_most(100) if rank == task.full_disk_of else nullcontext():
        try:
            learner.save(task.save)
        except OSError as error:
            return str(error)
    return ""


def _published(learner, version: int) -> dict:
    from actors.weights.transport import FolderTransport

    ticket = learner.publish(version)
    return dict(FolderTransport(Path(ticket.folder)).receive(ticket)) if ticket else {}
