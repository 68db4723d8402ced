"""Episodes that are told while they are written: the stage of the agent's tests, with somebody listening."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from actors.agent.seams import Generation, Sampling, Toolbox
from actors.agent.trajectory import Segment, Trajectory
from tests.unit.actors.agent.stage import Letters, Script, play
from workflows.serve.answers import Answered, Reached
from workflows.serve.reports import Reporter


@dataclasses.dataclass
class WhileWritten:
    """A `Generator` whose every line is told `pace` characters at a time before it is there; 0 tells nothing."""

    script: Script
    reporter: Reporter
    pace: int = 1

    @property
    def seen(self) -> list[Any]:
        return self.script.seen

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        generation = await self.script.generate(segments, sampling, deadline=deadline)
        text = Letters().decode(generation.token_ids)
        for end in range(self.pace, len(text) + 1, self.pace) if self.pace else ():
            self.reporter.wrote(text[:end])
        return generation


@dataclasses.dataclass(frozen=True)
class Told:
    """What a client was told, and how the episode really was."""

    reports: list[dict[str, Any]]
    choice: Answered
    trajectory: Trajectory

    def texts(self, kind: str) -> str:
        return "".join(report["text"] for report in self.reports if report["type"] == kind)

    def steps(self, *kinds: str) -> list[dict[str, Any]]:
        return [report for report in self.reports if report["type"] in kinds]


def tell(
    *lines: str | Exception | Generation,
    tools: Toolbox | None = None,
    stop: Sequence[str] = (),
    pace: int = 1,
    reached: Reached | None = None,
    thumbnails: dict[str, str] | None = None,
    preset: str = "compact",
    **stage: Any,
) -> Told:
    """Play the lines and listen. `stage`: as `stage.play` takes it."""
    reports: list[dict[str, Any]] = []
    reporter = Reporter(reports.append if pace else None, stop, thumbnails)
    script: Any = WhileWritten(Script(*lines), reporter, pace)
    trajectory = asyncio.run(play(script, tools, observer=reporter, preset=preset, **stage))
    return Told(reports, reporter.conclude(trajectory, reached), trajectory)
