"""The barrier of the round-synchronous arm: it holds everybody back, and nobody for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.seams import Generation, GenerationFailed, Sampling
from actors.agent.trajectory import Question
from tests.unit.workflows.grpo.bad_world import play
from workflows.bench import async_rounds
from workflows.bench.async_rounds import RoundBarrier, Rounds, in_rounds

SEARCHES, ANSWERS = 0, 1  # tokens, each of them a turn


def said(token: int, stop: str = "end_of_turn") -> Generation:
    return Generation(np.full(1, token, dtype=np.int32), np.zeros(1, dtype=np.float32), (), stop)


class Words:
    """The renderer, as far as the barrier asks it."""

    def decode(self, token_ids):
        return ("<text_search>who</text_search>", "<reason>.</reason><answer>she</answer>")[token_ids[0]]


def joined(*members: str, settle_s: float = 0.0) -> Rounds:
    rounds = Rounds(settle_s)
    for member in members:
        rounds.join(member, 0.0)
    return rounds


def test_nobody_begins_a_turn_before_the_slowest_tool_has_answered():
    rounds = joined("a", "b", "c")
    rounds.arrive("a")
    rounds.arrive("c")
    assert rounds.let_go(1.0) == []
    rounds.arrive("b")
    assert rounds.let_go(1.0) == ["a", "c", "b"]


def test_nobody_calls_a_tool_before_the_slowest_turn_is_generated():
    rounds = joined("a", "b")
    rounds.arrive("a")
    rounds.arrive("b")
    rounds.let_go(1.0)
    rounds.generated("b")
    assert rounds.let_go(1.0) == []
    rounds.generated("a")
    assert rounds.let_go(1.0) == ["b", "a"]


def test_an_episode_that_ends_is_waited_for_no_more():
    rounds = joined("a", "b")
    rounds.arrive("a")
    rounds.leave("b")
    assert rounds.let_go(1.0) == ["a"]
    rounds.leave("b")
    assert rounds.members == 1


def test_a_group_that_is_refilled_joins_the_next_round_and_not_the_one_under_way():
    rounds = joined("a", "b")
    rounds.arrive("a")
    rounds.arrive("b")
    rounds.let_go(1.0)
    rounds.join("c", 1.0)
    rounds.arrive("c")
    assert rounds.let_go(1.0) == []
    rounds.generated("a")
    rounds.generated("b")
    assert rounds.let_go(1.0) == ["a", "b"]  # to their tools
    rounds.leave("a")
    rounds.arrive("b")
    assert rounds.let_go(2.0) == ["c", "b"]
    assert rounds.opened == 2


def test_a_batch_that_arrives_one_by_one_is_one_round():
    rounds = joined("a", settle_s=0.5)
    rounds.arrive("a")
    assert rounds.let_go(0.4) == []
    rounds.join("b", 0.4)
    rounds.arrive("b")
    assert rounds.let_go(0.8) == []
    assert rounds.let_go(0.9) == ["a", "b"]


def test_who_waits_for_whom_can_be_told():
    rounds = joined("a", "b", "c")
    rounds.arrive("a")
    rounds.leave("b")
    assert str(rounds) == "1 at tools, 1 at the gate, 0 generating, 0 done"


@given(st.data())
def test_in_any_order_of_events_rounds_never_overlap_and_somebody_can_always_go_on(data: st.DataObject):
    rounds, number = Rounds(0.0), 0
    state: dict[str, str] = {}  # away, gate, playing, played
    fresh: set[str] = set()
    for _ in range(data.draw(st.integers(1, 60))):
        choices = ["join", *state]
        who = data.draw(st.sampled_from(choices))
        if who == "join":
            number += 1
            rounds.join(f"m{number}", 0.0)
            state[f"m{number}"] = "away"
            fresh.add(f"m{number}")
        elif data.draw(st.integers(0, 3)) == 0:
            rounds.leave(who)
            del state[who]
        elif state[who] == "away":
            rounds.arrive(who)
            state[who] = "gate"
        elif state[who] == "playing":
            rounds.generated(who)
            state[who] = "played"
        for member in rounds.let_go(0.0):
            before = state[str(member)]
            others = {one for name, one in state.items() if name != member}
            assert before in ("gate", "played")
            assert before == "played" or "away" not in others
            state[str(member)] = "playing" if before == "gate" else "away"
            fresh.discard(str(member))
        assert {"playing", "away"} & set(state.values()) or not state  # somebody is at work, so something will happen
        at_tools = [name for name, one in state.items() if one == "away" and name not in fresh]
        assert not at_tools or "playing" not in state.values()


class Engine:
    """Answers after as many seconds as it is told."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.asked: list[float] = []

    async def generate(self, segments, sampling, *, deadline):
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds.pop(0))
        return said(SEARCHES)


class LastWord(Engine):
    """The first thing that it says ends the episode."""

    def __init__(self, last: Generation) -> None:
        super().__init__(1.0)
        self.last = last

    async def generate(self, segments, sampling, *, deadline):
        await super().generate(segments, sampling, deadline=deadline)
        return self.last


async def episode(engine: Engine, tools: list[float], scoring: float = 0.0) -> list[float]:
    """When its turns were complete; a tool after each but the last, and after that one its score."""
    policy = in_rounds(engine, Words(), Question("q", "who?"))  # pyright: ignore[reportArgumentType]
    ends = []
    for seconds in [*tools, scoring]:
        await policy.generate([], Sampling(), deadline=time.monotonic() + 600.0)
        ends.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)
    return ends


def played(coroutine_of: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Its result, on a clock that jumps."""
    return play(coroutine_of)[0]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process has one barrier; each test has its own."""
    monkeypatch.setattr(async_rounds, "_barrier", RoundBarrier(settle_s=1.0))


def test_episodes_in_rounds_take_the_slowest_of_every_turn_and_of_every_tool():
    engines = [Engine(1.0, 5.0), Engine(4.0, 1.0), Engine(2.0)]

    async def all_of_them():
        return await asyncio.gather(episode(engines[0], [10.0]), episode(engines[1], [30.0]), episode(engines[2], []))

    first, second, third = played(all_of_them)
    assert first == second == pytest.approx([5.0, 5.0 + 30.0 + 5.0])  # 1 s to settle, then 4; a tool's 30; 5
    assert third == pytest.approx([5.0])
    assert [engine.asked for engine in engines] == [[1.0, 35.0], [1.0, 35.0], [1.0]]


@pytest.mark.parametrize("last", [said(ANSWERS), said(SEARCHES, "length"), said(SEARCHES, "aborted")])
def test_an_episode_that_has_ended_is_not_waited_for_while_it_is_scored(last):
    async def one_is_scored():
        return await asyncio.gather(episode(LastWord(last), [], scoring=500.0), episode(Engine(1.0, 1.0), [1.0]))

    assert played(one_is_scored) == [[pytest.approx(2.0)], [pytest.approx(2.0), pytest.approx(4.0)]]


def test_a_round_begins_when_nobody_has_joined_for_a_while():
    async def one_by_one():
        async def late(seconds: float) -> list[float]:
            await asyncio.sleep(seconds)
            return await episode(Engine(1.0), [])

        return await asyncio.gather(*(asyncio.create_task(late(seconds)) for seconds in (0.0, 0.9, 1.8, 2.7)))

    assert played(one_by_one) == [[pytest.approx(2.7 + 1.0 + 1.0)]] * 4


def test_a_clock_that_ticks_between_two_looks_leaves_nobody_at_the_gate(monkeypatch):
    class Coarse(RoundBarrier):
        """Every other look at the clock is a millisecond late."""

        looks = 0

        def _now(self) -> float:
            self.looks += 1
            return super()._now() - 0.001 * (self.looks % 2)

    monkeypatch.setattr(async_rounds, "_barrier", Coarse(settle_s=1.0))

    async def two():
        return await asyncio.gather(*(asyncio.create_task(episode(Engine(1.0), [])) for _ in range(2)))

    assert played(two) == [[pytest.approx(2.0, abs=0.01)]] * 2


def test_an_episode_that_is_cancelled_at_its_tool_keeps_nobody_from_the_next_round():
    async def one_is_cancelled():
        tasks = [asyncio.create_task(episode(Engine(1.0, 1.0), [seconds])) for seconds in (10.0, 1000.0)]
        asyncio.get_running_loop().call_later(20.0, tasks[1].cancel)
        return await tasks[0]

    assert played(one_is_cancelled) == pytest.approx([2.0, 21.0])


def test_an_engine_that_fails_one_episode_lets_the_round_of_the_others_end():
    class Broken(Engine):
        async def generate(self, segments, sampling, *, deadline):
            raise GenerationFailed("broken")

    async def one_fails():
        return await asyncio.gather(
            *(asyncio.create_task(episode(engine, [])) for engine in (Broken(), Engine(3.0))), return_exceptions=True
        )

    failed, whole = played(one_fails)
    assert isinstance(failed, GenerationFailed)
    assert whole == pytest.approx([4.0])


def test_who_waits_beyond_the_deadline_of_its_turn_fails_for_the_infrastructure_and_frees_the_rest():
    async def one_hangs():
        engines = [Engine(1.0, 1.0), Engine(2.0, 1.0)]
        return await asyncio.gather(
            *(
                asyncio.create_task(episode(engine, [tool]))
                for engine, tool in zip(engines, (1.0, 10_000.0), strict=True)
            ),
            return_exceptions=True,
        )

    first, second = played(one_hangs)
    assert isinstance(first, GenerationFailed)
    assert second == pytest.approx([3.0, 10_004.0])
