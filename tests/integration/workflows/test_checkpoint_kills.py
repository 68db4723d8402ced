"""SIGKILL at random moments of saving: what is found afterwards is whole, and no older than what was finished."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from actors.agent.trajectory import Ending, Segment, SegmentKind, Trajectory, VersionSpan
from actors.learner.backends.state_files import STATE_FILE, part_file
from cluster.storage import Folder
from workflows.grpo.checkpoint import CheckpointStore, SavedGroup
from workflows.grpo.ports import ControllerState
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.work_buffer import GroupId, WorkBuffer

KILLS = 25
GIVE_UP_S = 60.0
LEARNER_FILES, LEARNER_BYTES = 4, 200_000
DONE = "done"  # beside the checkpoints: the last step whose checkpoint was finished, as its writer knows


def store_in(root: Path) -> CheckpointStore:
    return CheckpointStore(Folder(root / "checkpoints"), {"model": "m"}, 2, lambda _: None)


def state_of(step: int) -> ControllerState:
    cursor = PromptsCursor(["q0", "q1"], step).snapshot()
    return ControllerState(step, step, WorkBuffer(2, 1).snapshot(), cursor, {"step": step})


def group_of(step: int) -> SavedGroup:
    ids = np.full(2000, step, dtype=np.int32)
    logprobs = np.random.default_rng(step).uniform(-9, 0, len(ids)).astype(np.float32)
    action = Segment(SegmentKind.ACTION, ids, logprobs, (VersionSpan(step, 0, len(ids)),))
    return SavedGroup(GroupId(step), (Trajectory("q0", 0, (action,), (), Ending.ANSWERED),))


async def save_learner(folder: Folder, step: int) -> None:
    folder.write_json(STATE_FILE, {"steps": step, "parts": LEARNER_FILES, "ranks": 0})
    for number in range(LEARNER_FILES):
        folder.write_bytes(part_file(number), step.to_bytes(8, "little") * (LEARNER_BYTES // 8))


def write_for_ever(root: str, first: int) -> None:
    """A checkpoint after the other, until it is killed."""
    here = Path(root)
    store = store_in(here)
    for step in range(first, 10**6):
        asyncio.run(store.write(state_of(step), [group_of(step)], lambda folder, s=step: save_learner(folder, s)))
        (here / f".{DONE}").write_text(str(step))
        os.replace(here / f".{DONE}", here / DONE)


@pytest.mark.slow  # many kills
@pytest.mark.timeout(600)
def test_a_kill_at_any_moment_of_saving_leaves_the_last_good_checkpoint(tmp_path):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.integration.workflows.test_checkpoint_kills"])
    draw = random.Random(0)
    store, torn, reached = store_in(tmp_path), 0, 0
    for _ in range(KILLS):
        writer = server.Process(target=write_for_ever, args=(str(tmp_path), reached + 1), daemon=True)
        writer.start()
        give_up = time.monotonic() + GIVE_UP_S
        while not newer_than(tmp_path, reached):
            assert writer.is_alive()
            assert time.monotonic() < give_up, "nothing was saved"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        done = int((tmp_path / DONE).read_text())
        torn += len(unfinished(tmp_path))
        found = store.latest()
        assert found is not None
        assert found.state.step in (done, done + 1)  # of the next one the writer could not tell any more
        assert found.state == state_of(found.state.step)
        check(found.folder, found.groups, found.state.step)
        reached = found.state.step
    assert torn > KILLS / 4, "the kills did not fall within saving"


def newer_than(root: Path, step: int) -> bool:
    return (root / DONE).exists() and int((root / DONE).read_text()) > step


def unfinished(root: Path) -> list[str]:
    folder = Folder(root / "checkpoints")
    return [name for name in folder.list() if not (folder / name).exists("COMPLETE.json")]


def check(folder: Folder, groups: tuple[SavedGroup, ...], step: int) -> None:
    """Every file is that of this step, to the last byte."""
    for number in range(LEARNER_FILES):
        assert folder.read_bytes(f"learner/{part_file(number)}") == step.to_bytes(8, "little") * (LEARNER_BYTES // 8)
    (group,), (wanted,) = groups, group_of(step).trajectories
    (segment,), (expected,) = group.trajectories[0].segments, wanted.segments
    assert segment.token_ids.tobytes() == expected.token_ids.tobytes()
    assert segment.logprobs.tobytes() == expected.logprobs.tobytes()
