"""What a request may spend."""

import asyncio
from dataclasses import replace

import pytest

from actors.agent.seams import GenerationFailed
from actors.agent.trajectory import Evidence, Outcome, Tool, ToolRequest, ToolResult
from tests.unit.actors.agent.stage import Script, Ticks, Tools, ask, play, say
from workflows.serve.answers import Reached, finish_reason
from workflows.serve.chat import Bounds
from workflows.serve.limits import BoundedToolbox, reached_by

FREE = Bounds(turns=None, tool_calls=None, cost_usd=None, seconds=60.0)
REQUEST = ToolRequest(Tool.TEXT_SEARCH, "q")


def priced(cost: float, outcome: Outcome = Outcome.OK) -> ToolResult:
    return ToolResult(outcome, (Evidence(1, "t", "x"),) if outcome is Outcome.OK else (), cost_usd=cost)


def calls(toolbox: BoundedToolbox, n: int) -> list[ToolResult]:
    async def several():
        return [await toolbox.call(REQUEST, deadline=1.0) for _ in range(n)]

    return asyncio.run(several())


def test_without_bounds_everything_is_passed_on_with_its_deadline():
    tools = Tools()
    toolbox = BoundedToolbox(tools, FREE)
    assert [result.outcome for result in calls(toolbox, 3)] == [Outcome.OK] * 3
    assert tools.requests == [(REQUEST, 1.0)] * 3
    assert toolbox.reached is None


def test_searches_are_counted_and_none_begins_beyond_the_bound():
    tools = Tools()
    toolbox = BoundedToolbox(tools, replace(FREE, tool_calls=2))
    assert [result.outcome for result in calls(toolbox, 2)] == [Outcome.OK] * 2
    assert toolbox.reached is None  # done within its bounds
    assert calls(toolbox, 1)[0].outcome is Outcome.POLICY_ERROR
    assert len(tools.requests) == toolbox.calls == 2
    assert toolbox.reached == Reached("max_tool_calls", "The request's bound of 2 searches is reached.")


def test_what_searches_cost_is_summed_failed_ones_included_and_none_begins_when_it_is_spent():
    tools = Tools(priced(0.4), priced(0.7, Outcome.INFRA_ERROR))
    toolbox = BoundedToolbox(tools, replace(FREE, cost_usd=1.0))
    assert [result.outcome for result in calls(toolbox, 3)] == [Outcome.OK, Outcome.INFRA_ERROR, Outcome.POLICY_ERROR]
    assert toolbox.cost_usd == pytest.approx(1.1)
    assert toolbox.reached == Reached("max_cost", "The request's bound of 1 USD is reached.")


def test_the_first_bound_that_refused_a_search_is_the_one_that_is_told():
    toolbox = BoundedToolbox(Tools(priced(2.0)), replace(FREE, tool_calls=1, cost_usd=1.0))
    calls(toolbox, 3)
    assert toolbox.reached is not None
    assert toolbox.reached.reason == "max_tool_calls"


def test_a_free_search_may_be_asked_for_and_a_bound_of_nothing_refuses_the_first():
    toolbox = BoundedToolbox(Tools(), replace(FREE, cost_usd=0.0))
    assert calls(toolbox, 1)[0].outcome is Outcome.POLICY_ERROR
    toolbox = BoundedToolbox(Tools(), replace(FREE, tool_calls=0))
    assert calls(toolbox, 1)[0].outcome is Outcome.POLICY_ERROR


def test_a_question_without_searching_asks_nobody_and_reaches_no_bound():
    tools = Tools()
    toolbox = BoundedToolbox(tools, replace(FREE, tool_calls=0), search=False)
    assert "switched off" in calls(toolbox, 1)[0].message
    assert (tools.requests, toolbox.reached) == ([], None)


# --- in an episode ----------------------------------------------------------------------------------------------


def played(*lines: str | Exception, bounds: Bounds, clock=None):
    toolbox = BoundedToolbox(Tools(priced(0.5), priced(0.5)), bounds)
    trajectory = asyncio.run(play(Script(*lines), toolbox, clock=clock))
    return trajectory, reached_by(trajectory, toolbox, bounds)


def test_the_model_reads_that_a_bound_is_reached_and_answers():
    script = Script(ask(), ask(), say())
    toolbox = BoundedToolbox(Tools(), replace(FREE, tool_calls=1))
    trajectory = asyncio.run(play(script, toolbox))
    assert trajectory.answer == "ilse tarn"
    assert "bound of 1 search is reached. Answer now." in script.seen[2][0][-1].text
    assert finish_reason(trajectory, reached_by(trajectory, toolbox, FREE)) == "max_tool_calls"


def test_a_request_that_used_all_it_had_and_asked_for_no_more_has_not_reached_its_bound():
    trajectory, reached = played(ask(), say(), bounds=replace(FREE, tool_calls=1, cost_usd=0.5))
    assert reached is None
    assert finish_reason(trajectory, reached) == "stop"


class CutAfter:
    """An engine whose second turn is cut after so many seconds."""

    def __init__(self, clock: Ticks, seconds: float) -> None:
        self._script, self._clock, self._seconds = Script(ask(), GenerationFailed("cut")), clock, seconds

    async def generate(self, segments, sampling, *, deadline):
        self._clock.now += self._seconds if self._script.seen else 0.0
        return await self._script.generate(segments, sampling, deadline=deadline)


@pytest.mark.parametrize(("seconds", "reason"), [(3.0, "max_seconds"), (2.999, "max_seconds"), (1.0, None)])
def test_time_ends_an_episode_and_an_engine_that_failed_in_time_is_no_bound(seconds, reason):
    clock, bounds = Ticks(), replace(FREE, seconds=3.0, tool_calls=0)
    toolbox = BoundedToolbox(Tools(), bounds)
    trajectory = asyncio.run(play(CutAfter(clock, seconds), toolbox, clock=clock))  # type: ignore[arg-type]
    reached = reached_by(trajectory, toolbox, bounds)
    assert toolbox.reached is not None  # a search was refused before, which ended nothing
    assert (reached.reason if reached else None) == reason


def test_turns_that_ran_out_are_told_before_a_bound_that_only_kept_it_from_searching():
    lines = [ask()] * 8
    trajectory, reached = played(*lines, bounds=replace(FREE, tool_calls=1))
    assert reached is not None
    assert finish_reason(trajectory, reached) == "max_turns"
