"""What a GRPO run leaves for people while it goes: a line per step, curves, and some of its episodes.

    metrics.jsonl, tensorboard/, ...   every number of every step (cluster/telemetry.py, cluster/trackers.py)
    trajectories/step-000020.parquet   a bounded sample of the episodes that the step was trained on
    the terminal                       one line of progress that stands still; without a terminal, one per step

A step that is done again after a resume replaces what its predecessor wrote. An evaluation is a line of its own in
metrics.jsonl: `step` is that of the weights, and the keys begin with `eval/`. What storage refuses is kept in memory
and written with the next step, in the same order; after a few refusals in a row the run ends.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.agent.trajectory import Trajectory
from cluster.storage import Folder
from cluster.storage_failures import Patience, storage_failed
from cluster.telemetry import Metrics, read
from cluster.trackers import Tracking
from workflows.grpo.ports import GroupResult, Payload
from workflows.grpo.records import row_for_people

SHOWN = (
    ("reward", "sampled/reward/mean", ".2f"),
    ("right", "sampled/reward/accuracy", ".2f"),
    ("search required", "sampled/search/ratio_required", ".2f"),
    ("free", "sampled/search/ratio_free", ".2f"),
    ("stale", "staleness/mean_tokens", ".2f"),
    ("tok/s", "tokens/sampled_per_s", ",.0f"),
)
EVALUATED = (
    ("right", "eval/exact_match", ".1%"),
    ("search required", "eval/search_ratio_required", ".0%"),
    ("free", "eval/search_ratio_free", ".0%"),
    ("reward", "eval/reward", ".2f"),
    ("of", "eval/episodes", ".0f"),
    ("failed", "eval/failed", ".0f"),
    ("seconds", "eval/seconds", ".1f"),
)
ROW_SCHEMA = pa.schema(
    [
        ("step", pa.int32()), ("question_id", pa.string()), ("sample_index", pa.int32()), ("kind", pa.string()),
        ("label", pa.string()), ("question", pa.string()), ("answers", pa.list_(pa.string())),
        ("answer", pa.string()), ("reward", pa.float32()), ("accuracy", pa.float32()), ("searches", pa.int32()),
        ("ending", pa.string()), ("failure", pa.string()), ("problem", pa.string()), ("seconds", pa.float32()),
        ("sampled_tokens", pa.int32()), ("text", pa.large_string()), ("record", pa.large_string()),
    ]
)  # fmt: skip

Fetch = Callable[[Sequence[Payload]], Awaitable[list[Trajectory]]]
STEP_TIME = "time/step_s"  # what every training step has, and no evaluation on the way


def training_steps(folder: Folder) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are training steps; evaluations on the way have lines of their own."""
    return [line for line in read(folder) if STEP_TIME in line]


class RunRecorder:
    """`ports.Recorder` on a run's folder and a terminal. Use as a context manager."""

    def __init__(
        self,
        folder: Folder,
        fetch: Fetch,
        steps: int,
        done: int,
        per_step: int,
        console: Console | None = None,
        tracking: Tracking | None = None,
        evaluated: int = -1,
    ) -> None:
        """`done` steps of `steps` were made before; `per_step` trajectories are kept of each.

        `evaluated` is the newest version whose evaluation counts as made.
        """
        self._folder, self._fetch, self._per_step = folder, fetch, per_step
        self._console = console or Console(stderr=True)
        self._metrics = Metrics(
            folder,
            resume_at=done if done or evaluated >= 0 else None,
            keeps=lambda line: line.get("eval/version", -1) <= evaluated,
            tracking=tracking,
            say=self.say,
        )
        self._writing = asyncio.Lock()  # an evaluation may end while a step is written
        self._unwritten: deque[Callable[[], None]] = deque()
        self._one_writer = threading.Lock()  # a thread whose task was cancelled may still write when the run ends
        self._patience = Patience(self.say)
        self._progress = Progress(
            TextColumn("GRPO"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("grpo", total=steps, completed=done, line="")
        self.last: Mapping[str, float] = {}

    def __enter__(self) -> RunRecorder:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        try:
            self._write_out()
            self._metrics.close()
        except OSError as error:
            if kind is None:  # else the reason why the run ends comes first
                raise storage_failed("what the last steps did could not be written down", error) from error

    async def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[GroupResult]) -> None:
        """Writes the numbers and a sample of the episodes."""
        self.last = metrics
        line = "  ".join(f"{name} {metrics[key]:{form}}" for name, key, form in SHOWN if key in metrics)
        self._progress.update(self._task, completed=step, line=line)
        if not self._console.is_terminal:
            self._console.print(f"step {step}: {line}  {metrics[STEP_TIME]:.1f} s", highlight=False)
        rows = await self._rows(step, groups)
        writes = [partial(self._metrics.log, step, metrics), *([partial(self._keep, step, rows)] if rows else [])]
        await self._write(writes, f"step {step}")

    async def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of its own for the step whose weights were evaluated, in the file and on the terminal."""
        shown = [f"{name} {metrics[key]:{form}}" for name, key, form in EVALUATED if key in metrics]
        best = "  the best so far" if metrics.get("eval/best") else ""
        self.say(f"evaluation at step {step}: {'  '.join(shown)}{best}")
        await self._write([partial(self._metrics.log, step, metrics)], f"the evaluation at step {step}")

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False)

    async def _rows(self, step: int, groups: Sequence[GroupResult]) -> list[dict[str, Any]]:
        """Of as many groups as possible: all first siblings, then all second ones, and so on."""
        rounds = range(max((len(g.payloads) for g in groups), default=0))
        order = [(g, i) for i in rounds for g in groups if i < len(g.payloads)][: self._per_step]
        trajectories = await self._fetch([group.payloads[i] for group, i in order])
        return [row_for_people(step, g.question, t) for (g, _), t in zip(order, trajectories, strict=True)]

    async def _write(self, writes: Sequence[Callable[[], None]], what: str) -> None:
        async with self._writing:
            self._unwritten.extend(writes)
            try:
                await asyncio.to_thread(self._write_out)
            except OSError as error:
                self._patience.failed(f"{what} could not be written down", error, "it is kept for the next try")
            else:
                self._patience.worked()

    def _write_out(self) -> None:
        with self._one_writer:
            while self._unwritten:
                self._unwritten[0]()
                self._unwritten.popleft()

    def _keep(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=ROW_SCHEMA), sink, compression="zstd")
        self._folder.write_bytes(f"trajectories/step-{step:06d}.parquet", sink.getvalue())
