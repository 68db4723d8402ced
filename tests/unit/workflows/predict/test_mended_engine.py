"""An engine that dies is replaced, so often and no more."""

import asyncio

import pytest

from workflows.predict.player import EngineBroken
from workflows.predict.worker import MENDED, MendedEngine


class Fake:
    def __init__(self, lives, starts=True):
        self.lives, self.starts, self.closed = lives, starts, False

    async def start(self):
        if not self.starts:
            raise RuntimeError("no memory")

    async def answers(self):
        await asyncio.sleep(0)
        return self.lives and self.starts

    async def close(self):
        self.closed = True


def made(*engines):
    waiting = list(engines)
    return MendedEngine(lambda: waiting.pop(0)), waiting


async def test_an_engine_that_works_is_left_alone():
    engine, waiting = made(Fake(True), Fake(True))
    await engine.mend()
    assert len(waiting) == 1


async def test_all_who_met_a_dead_engine_go_on_with_one_new_one():
    dead = Fake(False)
    engine, waiting = made(dead, Fake(True), Fake(True))
    await asyncio.gather(*(engine.mend() for _ in range(8)))
    assert (dead.closed, len(waiting)) == (True, 1)


async def test_one_that_does_not_start_is_followed_by_the_next_until_it_is_enough():
    engine, waiting = made(Fake(False), Fake(True, starts=False), Fake(True))
    await engine.mend()
    assert waiting == []
    engine, waiting = made(Fake(False), *[Fake(True, starts=False)] * MENDED)
    with pytest.raises(EngineBroken, match=f"the engine died {MENDED + 1} times"):
        await engine.mend()
    assert waiting == []
