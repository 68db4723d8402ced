"""What one request may spend: its toolbox shuts when a bound is reached, and remembers which.

Always true: a search that is under way is finished and counted; none begins beyond a bound, and the model is told so,
so that it answers from what it knows. `reached` is set only when a search was really refused, or the time really ended
the episode: a request that was done within its bounds has not reached them.
"""

from __future__ import annotations

from actors.agent.seams import Toolbox
from actors.agent.trajectory import Ending, Failure, Outcome, ToolRequest, ToolResult, Trajectory
from workflows.serve.answers import Reached
from workflows.serve.chat import Bounds

_CLOCK_S = 0.05  # a timer may ring a little early


class BoundedToolbox:
    """The toolbox of one request. `search`: whether it may be searched at all (`tool_choice`)."""

    def __init__(self, toolbox: Toolbox, bounds: Bounds, *, search: bool = True) -> None:
        self._toolbox, self._bounds, self._search = toolbox, bounds, search
        self.calls = 0
        self.cost_usd = 0.0
        self.reached: Reached | None = None  # the bound that refused a search

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """As `Toolbox.call`; beyond a bound a policy error, which the model reads."""
        if not self._search:
            return ToolResult(Outcome.POLICY_ERROR, message="searching is switched off for this question: answer it")
        if (beyond := self._beyond()) is not None:
            self.reached = beyond
            return ToolResult(Outcome.POLICY_ERROR, message=f"{beyond.says} Answer now.")
        self.calls += 1
        result = await self._toolbox.call(request, deadline=deadline)
        self.cost_usd += result.cost_usd
        return result

    def _beyond(self) -> Reached | None:
        most, budget = self._bounds.tool_calls, self._bounds.cost_usd
        if most is not None and self.calls >= most:
            says = f"The request's bound of {most} search{'es' * (most != 1)} is reached."
            return Reached("max_tool_calls", says)
        if budget is not None and self.cost_usd >= budget:
            return Reached("max_cost", f"The request's bound of {budget:g} USD is reached.")
        return None


def reached_by(trajectory: Trajectory, toolbox: BoundedToolbox, bounds: Bounds) -> Reached | None:
    """The bound of the request that cut its episode short: its time, or else what shut its toolbox."""
    failed = trajectory.ending is Ending.FAILED and trajectory.failure is Failure.INFRA
    if failed and trajectory.seconds >= bounds.seconds - _CLOCK_S:
        return Reached("max_seconds", f"There was no answer within {bounds.seconds:g} s.")
    if failed:
        return None  # an engine that failed is no bound, whatever was refused before
    return toolbox.reached
