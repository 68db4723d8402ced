"""Checkpoints that storage refuses: the run goes on for a while, keeps what it had, and ends in a sentence."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field, replace

import pytest

from cluster.errors import RunBroken, UserError
from tests.unit.workflows.grpo.bad_world import SMALL, World, controller, play, run_all


@dataclass
class Refusing(World):
    """Storage that answers the n-th save, counted from 0, with an error where `refused` has one."""

    refused: dict[int, OSError] = field(default_factory=dict)
    asked: int = 0

    async def save(self, state, finished):
        self.asked += 1
        if error := self.refused.get(self.asked - 1):
            raise error
        await super().save(state, finished)


FULL = OSError(errno.ENOSPC, "No space left on device")
EVERY_STEP = replace(SMALL, steps=8, checkpoint_every=1)


def steps_of(world):
    return [json.loads(text)["step"] for text, _, _ in world.saved]


def test_a_refused_checkpoint_is_said_and_the_next_one_is_the_next_try():
    world = Refusing(refused={1: FULL, 2: FULL, 4: FULL})
    end, _ = run_all(world, EVERY_STEP)
    assert end.complete
    assert steps_of(world) == [1, 4, 6, 7, 8]
    assert "the checkpoint of step 2 could not be written: No space left on device" in world.said[0]
    assert "step 3 tries again (1 of 3)" in world.said[0]
    assert [line[-8:] for line in world.said] == ["(1 of 3)", "(2 of 3)", "(1 of 3)"]


@pytest.mark.parametrize(
    ("error", "ending"), [(FULL, UserError), (OSError(errno.EIO, "Input/output error"), RunBroken)]
)
def test_three_in_a_row_end_the_run_and_leave_what_was_saved(error, ending):
    world = Refusing(refused={n: error for n in (2, 3, 4, 5)})

    async def main():
        return await controller(world, EVERY_STEP).run()

    with pytest.raises(
        ending, match=f"the checkpoint of step 5 could not be written, 3 times in a row: {error.strerror}"
    ):
        play(main)
    assert steps_of(world) == [1, 2]
    assert world.asked == 5  # and none was tried while it ended


def test_a_last_checkpoint_that_is_refused_ends_the_run_with_a_sentence():
    world = Refusing(refused={3: FULL})

    async def main():
        return await controller(world, replace(SMALL, steps=4, checkpoint_every=1)).run()

    with pytest.raises(UserError, match=r"^the checkpoint of step 4 could not be written: No space left on device\."):
        play(main)


def test_a_run_that_ended_so_goes_on_from_the_last_one_that_was_written():
    world = Refusing(refused={n: FULL for n in (2, 3, 4)})

    async def main():
        return await controller(world, EVERY_STEP, resume=True).run()

    with pytest.raises(UserError):
        play(main)
    end, _ = play(main)
    assert end.complete
    assert len(world.lineage) == len(set(world.lineage)) == EVERY_STEP.steps * EVERY_STEP.groups_per_step
