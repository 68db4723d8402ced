"""`mmsearch bench controller`: what the bookkeeping of asynchronous GRPO costs, without an engine in sight.

Two parts, both on **simulated** samplers and learner:

- *buffer*: the pure half (`WorkBuffer`, `PromptsCursor`, and `Places` with the seats of every episode) with as many
  groups under way as there are samplers, each on one group at a time, on a clock that jumps: a million groups, some
  filtered, some failed. The simulation's own time is in the figure. Memory is looked at on the way.
- *controller*: the whole `Controller` with its asyncio loops, tasks and metrics, on ports that answer at once: the
  processor time of a step, beside the step time of the run's own GRPO training where it has been trained.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from actors.agent.episode import Limits
from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, Failure, Label, Question, Summary
from workflows.grpo.controller import Controller
from workflows.grpo.places import FleetLimits, Place, Places
from workflows.grpo.ports import ControllerState, GroupResult, SamplerLoad
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.recorder import STEP_TIME, training_steps
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.work_buffer import GroupId, WorkBuffer
from workflows.run_folder import RunFolder

TARGET_GROUPS_PER_S, TARGET_SHARE = 20_000, 0.02
MEMORY_LOOKS = 20
QUESTIONS = 50_000  # of the simulated dataset
FLAT_SHARE, FAILED_SHARE = 0.3, 0.01  # groups that are filtered, and cancelled
SIGMA = 0.8  # of the log-normal time that a group takes
MIB = 2**20


@dataclass(frozen=True)
class ControllerLoad:
    """How much is simulated."""

    samplers: int = 10_000
    # each with one group under way: the slots of the buffer
    groups: int = 1_000_000
    # that the buffer sees, from admission to end
    steps: int = 150
    # of the whole controller


@dataclass(frozen=True)
class BufferFigures:
    """One pass of the pure half."""

    groups: int
    episodes: int  # of them, each of which had a seat of its own
    seconds: float
    seats_s: float  # of them, for the seats
    ends: dict[str, int]
    rss_mib: tuple[float, ...]  # of this process, evenly over the groups; the first one before the first group

    @property
    def per_s(self) -> float:
        return self.groups / self.seconds

    @property
    def per_s_without_seats(self) -> float:
        return self.groups / (self.seconds - self.seats_s)

    @property
    def growth_mib(self) -> float:
        """From a tenth of the way, when everything has its size, to the end."""
        warm = self.rss_mib[max(1, len(self.rss_mib) // 10)]
        return self.rss_mib[-1] - warm


def run(settings: Any, load: ControllerLoad, *, as_json: bool = False) -> None:
    """The command."""
    grpo: GrpoSettings = settings.grpo
    console = Console(stderr=True)
    buffer = simulated_buffer(load, grpo, settings.run.seed, console)
    cpu_s = asyncio.run(simulated_controller(grpo, load.steps))
    lines = training_steps(RunFolder(settings.run.folder).root / grpo.folder)
    document = document_of(load, grpo, buffer, cpu_s, [line[STEP_TIME] for line in lines])
    print(json.dumps(document, indent=2)) if as_json else show(document, Console())


# -- the pure half --


class _Seats:
    """Who plays what: the fleet's books, kept for every episode as `dispatch.py` keeps them."""

    def __init__(self, samplers: int, grpo: GrpoSettings) -> None:
        grpo = replace(grpo, samplers=samplers, episodes_per_sampler=grpo.group_size)
        self._siblings, self._places = grpo.group_size, Places(FleetLimits.of(grpo, Limits().longest_s))
        self._playing: dict[GroupId, list[tuple[Place, Any]]] = {}
        self.given_back = 0  # seats
        self.seconds = 0.0
        draw = random.Random(0)
        for i in range(samplers):
            self._places.set(self._places.add(_Sampler(f"sampler-{i}", draw)), fenced="")

    def begin(self, group: GroupId) -> None:
        began = time.perf_counter()
        episodes: Any = [(group, index) for index in range(self._siblings)]  # in place of tasks
        self._playing[group] = playing = []
        for episode in episodes:
            seat = self._places.seating.take(group)
            assert seat is not None, "there are as many seats as slots have episodes"
            place = self._places[seat.name]
            self._places.began(place, episode)
            playing.append((place, episode))
        self.seconds += time.perf_counter() - began

    def end(self, group: GroupId) -> None:
        began = time.perf_counter()
        for place, episode in self._playing.pop(group):
            self._places.ended(place, episode)
            self._places.seating.give_back(place.seat)
            self.given_back += 1
        self._places.seating.end_group(group)
        self.seconds += time.perf_counter() - began


def simulated_buffer(load: ControllerLoad, grpo: GrpoSettings, seed: int, console: Console) -> BufferFigures:
    """Every group from admission to its end, on a clock that jumps to the next one that is finished."""
    draw = random.Random(seed)
    buffer = WorkBuffer(max(1, load.samplers // (grpo.max_staleness + 1)), grpo.max_staleness)
    cursor = PromptsCursor((f"question-{i}" for i in range(QUESTIONS)), seed)
    seats = _Seats(buffer.slots, grpo)
    under_way: list[tuple[float, GroupId]] = []
    admitted_at: dict[GroupId, int] = {}
    now, version = 0.0, 0
    looks = [_rss_mib()]
    began = time.perf_counter()
    with _bar("bench controller: buffer", load.groups, console) as bar:
        task = bar.add_task("", total=load.groups)
        while buffer.released < load.groups:
            while buffer.free_slots and (group := buffer.admit(cursor.next(), version)) is not None:
                buffer.start(group)
                seats.begin(group)
                admitted_at[group] = version
                heapq.heappush(under_way, (now + draw.lognormvariate(0.0, SIGMA), group))
            now, group = heapq.heappop(under_way)
            seats.end(group)
            luck = draw.random()
            if luck < FAILED_SHARE:
                cursor.give_back(buffer.get(group).question_id, at_most=2)
                buffer.cancel(group, "infra")
                admitted_at.pop(group)
            else:
                buffer.finish(group, admitted_at.pop(group))
                if luck < FAILED_SHARE + FLAT_SHARE:
                    buffer.filter(group, "zero_variance")
            if batch := buffer.take(version):
                version += 1
                buffer.release(batch, version)
            if buffer.released * MEMORY_LOOKS >= load.groups * len(looks):
                looks.append(_rss_mib())
                bar.update(task, completed=buffer.released)
    seconds = time.perf_counter() - began
    return BufferFigures(buffer.released, seats.given_back, seconds, seats.seconds, buffer.ends(), tuple(looks))


def _rss_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


def _bar(title: str, total: int, console: Console) -> Progress:
    return Progress(
        TextColumn(title), BarColumn(bar_width=20), TextColumn(f"{{task.completed:,.0f}} of {total:,}"),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip


# -- the whole controller --


class _Sampler:
    """Answers at the next turn of the loop."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name, self._version, self._draw = name, 0, draw

    async def run(self, question: Question, sample_index: int, sampling: Sampling) -> tuple[Summary, object]:
        await asyncio.sleep(0)
        reward = float(self._draw.random() < 0.5)
        extra = {"tokens_by_version": {self._version: 60}, "tool_seconds": 0.0, "cost_usd": 0.0, "format": 1.0}
        summary = Summary(
            question.id, sample_index, reward, reward, Ending.ANSWERED, Failure.NONE, searches=1, sampled_tokens=60,
            expanded_length=300, oldest_version=self._version, newest_version=self._version, seconds=1.0, extra=extra,
        )  # fmt: skip
        return summary, None

    async def update(self, ticket: int) -> None:
        self._version = ticket

    async def cancel(self, question_id: str, sample_index: int | None = None) -> None:
        return None

    async def healthy(self) -> bool:
        return True

    async def load(self) -> SamplerLoad:
        return SamplerLoad()

    async def revive(self) -> None:
        return None


class _Others:
    """Learner, storage and recorder that do nothing, but say when a step ended."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []  # of this process, at the end of each step

    async def train(self, groups: Sequence[GroupResult], version: int) -> Mapping[str, float]:
        return {"loss": 0.0}

    async def publish(self, version: int) -> int:
        return version

    async def save(self, state: ControllerState, finished: Sequence[GroupResult]) -> None:
        return None

    async def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[GroupResult]) -> None:
        self.cpu_s.append(time.process_time())

    async def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        return None

    def say(self, message: str) -> None:
        return None


async def simulated_controller(grpo: GrpoSettings, steps: int) -> list[float]:
    """Processor seconds of each step, after the first, of a run as it is configured but for its engines."""
    questions = {
        f"question-{i}": Question(f"question-{i}", "?", kind="looking", designed_label=Label.FREE)
        for i in range(steps * grpo.groups_per_step)
    }
    grpo = replace(grpo, steps=steps + 1, checkpoint_every=steps + 1, evaluation=replace(grpo.evaluation, every=0))
    others = _Others()
    draw = random.Random(0)
    samplers = [_Sampler(f"sampler-{i}", draw) for i in range(grpo.samplers)]
    await Controller(grpo, questions, samplers, others, others, others).run()
    return [after - before for before, after in zip(others.cpu_s, others.cpu_s[1:], strict=False)]


# -- what is said of it --


def document_of(
    load: ControllerLoad, grpo: GrpoSettings, buffer: BufferFigures, cpu_s: Sequence[float], step_s: Sequence[float]
) -> dict[str, Any]:
    """As JSON takes it. `step_s` are those of the run's own training, none where it has not been trained."""
    whole = {
        "groups_per_step": grpo.groups_per_step,
        "group_size": grpo.group_size,
        "cpu_ms_per_step": 1e3 * median(cpu_s),
        "step_s": median(step_s) if step_s else None,
        "share_of_step": median(cpu_s) / median(step_s) if step_s else None,
    }
    figures = dataclasses.asdict(buffer) | {
        "groups_per_s": buffer.per_s,
        "groups_per_s_without_seats": buffer.per_s_without_seats,
        "growth_mib": buffer.growth_mib,
    }
    return {"samplers": "simulated", "load": dataclasses.asdict(load), "buffer": figures, "controller": whole}


def show(document: Mapping[str, Any], out: Console) -> None:
    """The same for a person."""
    load, buffer, whole = document["load"], document["buffer"], document["controller"]
    table = Table(title=f"controller, {load['samplers']:,} simulated samplers", title_justify="left")
    for column in ("", "measured", "target"):
        table.add_column(column, justify="left" if column != "measured" else "right")
    fast = "reached" if buffer["groups_per_s"] >= TARGET_GROUPS_PER_S else "missed"
    table.add_row(
        "buffer, cursor and seats: groups/s", f"{buffer['groups_per_s']:,.0f}", f"{TARGET_GROUPS_PER_S:,}: {fast}"
    )
    table.add_row("  without the seats of their episodes", f"{buffer['groups_per_s_without_seats']:,.0f}", "")
    table.add_row("  groups, from admission to end", f"{buffer['groups']:,}", "")
    table.add_row("  episodes that were given a seat and gave it back", f"{buffer['episodes']:,}", "")
    for how, n in buffer["ends"].items():
        table.add_row(f"    {how}", f"{n:,}", "")
    table.add_row("  memory at its beginning and end, MiB", _ends(buffer["rss_mib"]), "")
    table.add_row("  growth over the last nine tenths, MiB", f"{buffer['growth_mib']:+.1f}", "flat")
    size = f"{whole['groups_per_step']} groups of {whole['group_size']}"
    table.add_row(f"controller: CPU ms of a step of {size}", f"{whole['cpu_ms_per_step']:.1f}", "")
    if whole["step_s"] is None:
        table.add_row("  of a step of the run's own training", "not trained yet", f"at most {TARGET_SHARE:.0%}")
    else:
        reached = "reached" if whole["share_of_step"] <= TARGET_SHARE else "missed"
        says = f"of the {whole['step_s']:.2f} s that a step of the run's own training took"
        table.add_row(f"  {says}", f"{whole['share_of_step']:.2%}", f"at most {TARGET_SHARE:.0%}: {reached}")
    out.print(table)


def _ends(rss: Sequence[float]) -> str:
    return f"{rss[0]:.0f}, {rss[-1]:.0f}"
