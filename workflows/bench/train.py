"""`mmsearch bench train`: tokens a second of the very optimizer steps that pretrain, SFT and GRPO make.

A step is the stage's own: lessons or conversations chosen and written, collated, forward, backward, optimizer; GRPO's
is in `train_policy.py`. The steps that are timed lie evenly over the stage's, so that a recipe that changes on the way
is met in its shares. The bound is this machine's best matrix product, measured in the same run, dtype and threads,
before and after each stage.
Nothing is written but in a scratch folder; the run is only read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.allocator import freed_memory_kept
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.bench import train_policy
from workflows.bench.flops import TRAINING, Shape, forward_flops
from workflows.bench.peak import matmul_peak
from workflows.bench.ratios import Spread
from workflows.run_folder import RunFolder

if TYPE_CHECKING:
    from workflows.dataset.conversations import Conversation

TARGETS = {"pretrain": 14_000, "sft": 14_000, "grpo": 15_000}  # non-padding tokens a second on two CPU cores
WARM_UP = 3  # steps
PROFILED = 3  # steps
TOP = 10  # operations


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    seconds: float
    tokens: int  # non-padding, pictures expanded
    flops: int  # that these tokens need, forward and backward


class Counts(Protocol):
    """Tells what its last step was made of."""

    tokens: int
    flops: int


class Watched:
    """A `SupervisedLearner` that keeps what its last step was made of."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self._pixels = learner._pixels
        self._shape = Shape.of(learner._backend.model.config)
        self.tokens = self.flops = 0

    def step(self, sequences: Sequence[Any]) -> Any:
        lengths = [len(one) for one in sequences]
        targets = sum(int(one.loss_mask[1:].sum()) for one in sequences)
        pictures = {ref for one in sequences for ref in one.images}
        done = self._learner.step(sequences)
        patches = [self._pixels.n_tokens(ref) * self._shape.merge**2 for ref in pictures]
        self.tokens, self.flops = sum(lengths), TRAINING * forward_flops(self._shape, lengths, targets, patches)
        return done


def run(settings: Any, stages: Sequence[str], steps: int, profile: bool, *, as_json: bool = False) -> None:
    """The command. Raise `UserError`."""
    console = Console(stderr=True)
    checks = {"sft": _check_sft, "grpo": train_policy.check}
    for name in stages:
        checks.get(name, lambda _: None)(settings)
    ready = {"pretrain": _pretrain, "sft": _sft, "grpo": train_policy.prepare}
    found = {}
    for name in stages:
        console.print(f"bench train: preparing {name}", highlight=False)
        with freed_memory_kept(), tempfile.TemporaryDirectory(prefix="mmsearch-bench-") as scratch:
            step, learner = ready[name](settings, Path(scratch))
            precision = settings.learner.backend.precision if name == "grpo" else getattr(settings, name).precision
            form = Form(name, getattr(settings, name).steps, "bfloat16" if precision == "bf16" else "float32", steps)
            found[name] = _measured(form, step, learner, profile, console)
    if as_json:
        print(json.dumps({"targets": {name: TARGETS[name] for name in found}, "stages": found}, indent=2))
    else:
        show(found, Console())


def _pretrain(settings: Any, scratch: Path) -> tuple[Callable[[int], Any], Watched]:
    from workflows.embedded.entities import make_world
    from workflows.embedded.pretrain import Pretraining

    folder = RunFolder.at(str(scratch / "run"))
    folder.root.ensure_writable()
    model = scratch / "model"
    model.mkdir()
    world = make_world(settings.world)
    stage = Pretraining(
        settings.pretrain, settings.run.seed, world, folder, {}, model, Console(quiet=True), settings.tracking("bench")
    )
    learner: Any = Watched(stage.make(resumes=False))
    return lambda number: stage.step(learner, number), learner


def _check_sft(settings: Any) -> None:
    from workflows.dataset.conversations import shards_of

    model, source = _sft_sources(settings)
    if not model.exists("config.json"):
        raise UserError(
            f"The SFT bench starts from the model at {model}, which is not there: run `mmsearch pretrain"
            f" run.name={settings.run.name}` first, or name another model with sft.start_from."
        )
    shards_of(source)


def _sft_sources(settings: Any) -> tuple[Folder, Folder]:
    run = RunFolder(settings.run.folder)
    model = Folder(settings.sft.start_from) if settings.sft.start_from else run.base
    return model, Folder(settings.sft.conversations) if settings.sft.conversations else run.conversations


def _sft(settings: Any, scratch: Path) -> tuple[Callable[[int], Any], Watched]:
    from actors.learner.backends.ranks import Ranks
    from workflows.dataset.conversations import conversation_of, rows_of, shards_of
    from workflows.sft_rank import Rank, Task

    run = RunFolder(settings.run.folder)
    model, source = _sft_sources(settings)
    images = run.images()

    def received(image_token: int) -> list[Conversation]:
        rows = [
            row
            for shard in shards_of(source)
            for row in rows_of(source, shard, images, image_token, settings.sft.max_length)
            if not row["problem"]
        ]
        if not rows:
            raise UserError(f"None of the conversations at {source} can be used.")
        return sorted((conversation_of(row, image_token) for row in rows), key=lambda it: it.id)

    rank: Any = Rank(
        Task(settings.sft, settings.run.seed, run.root.address, settings.pictures.on(model.address)), Ranks(), received
    )
    rank.learner = Watched(rank.learner)
    return rank.step, rank.learner


def positions(steps: int, n: int) -> list[int]:
    """`n` step numbers, evenly over 1 .. steps."""
    return [1 + (2 * i + 1) * steps // (2 * n) for i in range(n)]


@dataclass(frozen=True)
class Form:
    """What is measured of a stage."""

    name: str
    steps: int  # of the stage
    dtype: str
    timed: int  # of its steps


def _measured(
    form: Form, step: Callable[[int], Any], learner: Counts, profile: bool, console: Console
) -> dict[str, Any]:
    import torch

    peak = matmul_peak(form.dtype)
    made: list[Step] = []
    with Progress(
        TextColumn(f"bench train: {form.name}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        for number in bar.track([*positions(form.steps, WARM_UP), *positions(form.steps, form.timed)]):
            began = time.perf_counter()
            step(number)
            made.append(Step(time.perf_counter() - began, learner.tokens, learner.flops))
    peak = max(peak, matmul_peak(form.dtype))
    document = document_of(made[WARM_UP:], peak) | {"dtype": form.dtype, "threads": torch.get_num_threads()}
    return document | ({"profile": _profiled(step, form.steps)} if profile else {})


def document_of(made: Sequence[Step], peak: float) -> dict[str, Any]:
    """What steps say, as JSON takes it. `peak` in FLOP/s."""
    speed = Spread.of([one.tokens / one.seconds for one in made])
    share = Spread.of([one.flops / one.seconds / peak for one in made])
    tokens = sum(one.tokens for one in made)
    return {
        "steps": len(made),
        "tokens_per_s": dataclasses.asdict(speed),
        "tokens_per_step": tokens / len(made),
        "seconds_per_step": dataclasses.asdict(Spread.of([one.seconds for one in made])),
        "mflops_per_token": sum(one.flops for one in made) / tokens / 1e6,
        "peak_gflops": peak / 1e9,
        "share_of_peak": dataclasses.asdict(share),
    }


def _profiled(step: Callable[[int], Any], steps: int) -> dict[str, Any]:
    """Operations by their own time. What none of them claims is Python: lessons, collating, module calls."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell every start and stop on standard error
    from torch.profiler import ProfilerActivity, profile

    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in positions(steps, PROFILED):
            step(number)
        seconds = time.perf_counter() - began
    events = sorted(profiler.key_averages(), key=lambda it: -it.self_cpu_time_total)
    own = sum(it.self_cpu_time_total for it in events) / 1e6
    return {
        "steps": PROFILED,
        "seconds": seconds,
        "outside_operations": max(0.0, 1 - own / seconds),
        "operations": [
            {"name": it.key, "share": it.self_cpu_time_total / 1e6 / seconds, "calls": it.count / PROFILED}
            for it in events[:TOP]
        ],
    }


def show(stages: Mapping[str, Mapping[str, Any]], out: Console) -> None:
    """The same for a person."""
    table = Table(title="optimizer steps, median (from - to)", title_justify="left")
    for column in ("", *stages):
        table.add_column(column, justify="right" if column else "left")

    def row(title: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        table.add_row(title, *(cell(one) for one in stages.values()))

    def spread(of: Mapping[str, float], form: str) -> str:
        return f"{of['median']:{form}} ({of['low']:{form}} - {of['high']:{form}})"

    row("non-padding tok/s", lambda it: spread(it["tokens_per_s"], ",.0f"))
    row("seconds a step", lambda it: spread(it["seconds_per_step"], ".2f"))
    row("tokens a step", lambda it: f"{it['tokens_per_step']:,.0f}")
    row("MFLOP a token", lambda it: f"{it['mflops_per_token']:.1f}")
    row("matmul peak, GFLOP/s", lambda it: f"{it['peak_gflops']:,.0f} ({it['dtype']}, {it['threads']} threads)")
    row("share of the peak", lambda it: spread(it["share_of_peak"], ".1%"))
    reached = [
        f"{TARGETS[name]:,}: {'reached' if it['tokens_per_s']['median'] >= TARGETS[name] else 'missed'}"
        for name, it in stages.items()
    ]
    table.add_row("target, tok/s", *reached)
    out.print(table)
    for name, one in stages.items():
        if profile := one.get("profile"):
            _show_profile(name, profile, out)


def _show_profile(name: str, profile: Mapping[str, Any], out: Console) -> None:
    title = f"{name}: where {profile['steps']} steps ({profile['seconds']:.1f} s under the profiler) went"
    table = Table(title=title, title_justify="left")
    for column in ("operation", "share", "calls a step"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    for it in profile["operations"]:
        table.add_row(it["name"], f"{it['share']:.1%}", f"{it['calls']:,.0f}")
    rest = 1 - profile["outside_operations"] - sum(it["share"] for it in profile["operations"])
    table.add_row("other operations", f"{rest:.1%}", "")
    table.add_row("outside operations: Python", f"{profile['outside_operations']:.1%}", "")
    out.print(table)
