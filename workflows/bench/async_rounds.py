"""A barrier between rounds, as a rollout has it that calls its engine once a turn for the whole batch.

    all at the gate -> ROUND: everybody generates -> the last one has -> everybody's tool is called -> all at the gate

MMSearch-R1's rollout is of this kind (one synchronous `generate` over the active episodes, then a thread pool for all
searches of the turn): nobody's next turn begins before the slowest tool has answered, and no tool is called before the
slowest turn was generated. `in_rounds` is a `PolicyFactory` that gives the real engine this schedule, for the bench.

Always true of `Rounds`, which is pure:
- nobody generates while somebody of the same round is at a tool;
- as long as a member is neither generating nor away at a tool, somebody is let go (no deadlock): a member that ends,
  fails or is cancelled leaves, and one that joins while a round is under way waits for the next;
- a round waits until nobody has joined for `settle_s`, so that a batch that arrives one by one is one round.

An episode leaves with its answer, as the engine sees it: its score is no part of a round, MMSearch-R1 scores after its
rollout. One that ends otherwise (no turn left, no room for what a tool returned) leaves when it has been scored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from actors.agent.protocol import Answer, Grammar, parse_turn
from actors.agent.seams import Generation, GenerationFailed, Generator, Renderer, Sampling
from actors.agent.trajectory import Question, Segment

_log = logging.getLogger(__name__)

IN_ROUNDS = "workflows.bench.async_rounds.in_rounds"  # the policy under which episodes are played in rounds
SETTLE_S = 0.05  # without a newcomer, before a round begins
TICK_S = 0.001  # of the coarsest event loop's clock
GATE_GRACE_S = 1.0  # before a turn's deadline, for the engine to say that there is no time left


class Rounds:
    """Who may go on. Members are any hashable things; times are seconds of one clock."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._away: set[Hashable] = set()  # between turns: at a tool, or on the way to the gate
        self._gate: dict[Hashable, None] = {}  # want to generate, in order of arrival
        self._playing: set[Hashable] = set()  # generate
        self._played: dict[Hashable, None] = {}  # have, and wait for the others of the round
        self._joined_at = 0.0
        self.opened = 0  # rounds

    @property
    def members(self) -> int:
        return len(self._away) + len(self._gate) + len(self._playing) + len(self._played)

    def __str__(self) -> str:
        parts = {"at tools": self._away, "at the gate": self._gate, "generating": self._playing, "done": self._played}
        return ", ".join(f"{len(who)} {what}" for what, who in parts.items())

    def join(self, member: Hashable, now: float) -> None:
        self._away.add(member)
        self._joined_at = now

    def leave(self, member: Hashable) -> None:
        """Also for one that never joined or has left."""
        for state in (self._away, self._playing):
            state.discard(member)
        for queue in (self._gate, self._played):
            queue.pop(member, None)

    def arrive(self, member: Hashable) -> None:
        """It wants to generate its next turn."""
        self._away.remove(member)
        self._gate[member] = None

    def generated(self, member: Hashable) -> None:
        """Its turn is complete."""
        self._playing.remove(member)
        self._played[member] = None

    def let_go(self, now: float) -> list[Hashable]:
        """Who goes on now, in order; ask again after every change, and at `opens_at`."""
        if self._playing:
            return []
        if self._played:
            going = list(self._played)
            self._played.clear()
            self._away.update(going)
            return going
        if self._away or not self._gate or now < self.opens_at:
            return []
        going = list(self._gate)
        self._gate.clear()
        self._playing.update(going)
        self.opened += 1
        return going

    @property
    def opens_at(self) -> float:
        """Before this time no round begins."""
        return self._joined_at + self._settle_s


class RoundBarrier:
    """`Rounds` for the tasks of one event loop: who may not go on waits here."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._rounds = Rounds(settle_s)
        self._waiting: dict[Hashable, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def members(self) -> int:
        return self._rounds.members

    def __str__(self) -> str:
        return str(self._rounds)

    def join(self, member: asyncio.Task[Any]) -> None:
        """Until it leaves, or the task is done, however it ends."""
        self._rounds.join(member, self._now())
        member.add_done_callback(self.leave)

    def leave(self, member: asyncio.Task[Any]) -> None:
        """Nobody waits for it any more. Also for one that has left."""
        self._rounds.leave(member)
        self._look()

    async def arrive(self, member: asyncio.Task[Any], seconds: float) -> None:
        """Returns when the next round begins. Raise `TimeoutError` when it has not within `seconds`."""
        await self._wait(member, self._rounds.arrive, seconds)

    async def generated(self, member: asyncio.Task[Any], seconds: float) -> None:
        """Returns when the whole round has generated. Raise `TimeoutError` as above."""
        await self._wait(member, self._rounds.generated, seconds)

    async def _wait(self, member: asyncio.Task[Any], step: Callable[[Hashable], None], seconds: float) -> None:
        mine = self._waiting[member] = asyncio.get_running_loop().create_future()
        step(member)
        self._look()
        try:
            async with asyncio.timeout(seconds):
                await mine
        finally:
            self._waiting.pop(member, None)

    def _look(self) -> None:
        now = self._now()  # one time for both: uvloop's clock ticks in milliseconds, also between two calls
        for member in self._rounds.let_go(now):
            if (waiting := self._waiting.get(member)) and not waiting.done():
                waiting.set_result(None)
        if now < self._rounds.opens_at and self._timer is None:
            wait = max(TICK_S, self._rounds.opens_at - now)
            self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._look()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _InRounds:
    """The engine as one episode sees it that keeps step with all others of this process."""

    def __init__(self, engine: Generator, renderer: Renderer, barrier: RoundBarrier, member: asyncio.Task[Any]) -> None:
        self._engine, self._renderer, self._barrier, self._member = engine, renderer, barrier, member

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        """As the engine's own, when everybody's turn has come; `deadline` is a time of time.monotonic."""
        try:
            await self._barrier.arrive(self._member, deadline - time.monotonic() - GATE_GRACE_S)
            generation = await self._engine.generate(segments, sampling, deadline=deadline)
            await self._barrier.generated(self._member, deadline - time.monotonic())
        except TimeoutError:
            told = f"a round was not complete before the deadline of a turn: {self._barrier}"
            _log.warning("%s", told)
            raise GenerationFailed(told) from None
        if self._is_last(generation):
            self._barrier.leave(self._member)
        return generation

    def _is_last(self, generation: Generation) -> bool:
        """Whether the episode ends with this turn: an answer is one in every grammar, and none follows a torn one."""
        if generation.stop != "end_of_turn":
            return True
        return isinstance(parse_turn(self._renderer.decode(generation.token_ids), Grammar()).action, Answer)


_barrier: RoundBarrier | None = None  # of this process, which has one engine and one event loop


def in_rounds(engine: Generator, renderer: Renderer, question: Question) -> Generator:
    """A policy factory; called in the task that plays the episode."""
    global _barrier
    _barrier = _barrier or RoundBarrier()
    task = asyncio.current_task()
    assert task is not None, "episodes are played in tasks"
    _barrier.join(task)
    return _InRounds(engine, renderer, _barrier, task)
