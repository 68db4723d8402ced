"""`mmsearch demo`: every stage on this machine, for real, from nothing to the table.

Stopped with Ctrl-C it is continued by the same command; stages that are finished with the same configuration are
reused. Each stage is the function that its own command calls; here they follow each other on one Ray.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from cluster.footprint import MemoryWatch
from cluster.storage import Folder
from workflows.comparison import compare
from workflows.evaluate import tables
from workflows.play_stages import Play, tasks_of
from workflows.report.run import FILE as REPORT
from workflows.report.run import write_report
from workflows.stage import Stage, StageBook
from workflows.variants import ABLATIONS, ablation_stages, ablation_words, seed_words

STAGES = (
    Stage(
        "pretrain",
        "workflows.embedded.pretrain:run",
        "make the synthetic web and a tiny Qwen2.5-VL that sees, knows a few organisations, and reads",
        settings=("world", "pretrain", "run.seed"),
        outputs=("world", "base/config.json"),
        ray=False,
        version=3,  # copying first, and what is known is said before it is answered
    ),
    Stage(
        "dataset",
        "workflows.dataset.build:run",
        "draw questions, and let a scripted teacher answer them with the real tools",
        settings=("mix", "dataset", "agent", "search", "run.seed"),
        needs=("pretrain",),
        outputs=("dataset/questions/train", "dataset/questions/test", "dataset/sft"),
        version=3,  # the teacher says what it knows before it answers
    ),
    Stage(
        "sft",
        "workflows.sft:run",
        "fine-tune the base model on the teacher's conversations",
        settings=("sft", "agent", "run.seed"),
        needs=("pretrain", "dataset"),
        outputs=("sft/export/config.json",),
    ),
    Stage(
        "grpo",
        "workflows.grpo.run:run",
        "reinforce what is right and searched for no more than needed: asynchronous GRPO",
        settings=("grpo", "learner", "engine", "agent", "search", "reward", "run.seed"),
        needs=("dataset", "sft"),
        outputs=("grpo/export/config.json",),
        refuses=True,
    ),
    Stage(
        "evaluate",
        "workflows.evaluate.run:run",
        "ask what none of them was trained on: without tools, with forced retrieval, after SFT, after RL",
        settings=("evaluate", "engine", "agent", "search", "reward", "run.seed"),
        needs=("dataset", "sft", "grpo"),
        outputs=("evaluate/results.json",),
        version=2,  # rows with evidence and tool choice, documents with intervals
    ),
)

Again = Callable[[Sequence[str]], Any]  # the settings of this command line with more words


def run(
    settings: Any,
    console: Console | None = None,
    *,
    seeds: int = 1,
    ablations: bool = False,
    again: Again | None = None,
) -> None:
    """The command. Raises `UserError` of a stage, and KeyboardInterrupt when stopped.

    `seeds` runs differ in the seed of everything, the world's included; `ablations` adds those of
    workflows/variants.py to each. Either needs `again`.
    """
    console = console or Console(stderr=True)
    again = again or (lambda _: settings)
    words = [seed_words(settings, number) if seeds > 1 else [] for number in range(seeds)]
    runs = [again(extra) for extra in words]
    for number, (one, extra) in enumerate(zip(runs, words, strict=True), start=1):
        if seeds > 1:
            console.print(Rule(f"run {number} of {seeds}: {one.run.name}", style="bold"))
        chosen = [it for it in ABLATIONS if ablations and it.name in settings.demo.ablations]
        altered = {it.name: again([*extra, *ablation_words(it)]) for it in chosen}
        _one_run(one, altered, console)
    if seeds > 1 or ablations:
        compare(runs, settings.demo.ablations if ablations else (), console)


def _one_run(settings: Any, ablations: Mapping[str, Any], console: Console) -> None:
    """`ablations`: settings by name."""
    folder: Folder = settings.run.folder
    folder.ensure_writable()
    expected = dataclasses.asdict(settings.demo.expected)
    tasks = tasks_of(STAGES, settings)
    marks = {task.stage.name: task.fingerprint for task in tasks}
    for ablation in (it for it in ABLATIONS if it.name in ablations):
        stages = ablation_stages(ablation, STAGES)
        expected |= {stages[0].name: expected["grpo"], stages[1].name: expected["evaluate"] / 3}  # one arm alone
        tasks += tasks_of(stages, ablations[ablation.name], marks)
    with ExitStack() as stack:
        memory = stack.enter_context(MemoryWatch(settings.demo.memory_every_s))
        play = Play(tasks, StageBook(folder), expected, stack, console)
        play.all()
        memory.look()
    _finish(settings, play, memory.peak, console)


def _finish(settings: Any, play: Play, peak: int, console: Console) -> None:
    folder: Folder = settings.run.folder
    if "evaluate" in play.reused:  # else it has shown them
        tables.show(folder.read_json("evaluate/results.json")["arms"])
    times = Table(title="time per stage", title_justify="left")
    times.add_column("stage")
    times.add_column("seconds", justify="right")
    times.add_column("")
    for name, seconds in play.took.items():
        times.add_row(name, f"{seconds:.0f}", "reused" if name in play.reused else "")
    times.add_row("together", f"{sum(play.took.values()):.0f}", "")
    console.print(times)
    console.print(f"peak memory of everything together: {peak / 2**30:.1f} GiB (PSS)", highlight=False)
    folder.write_json("demo.json", {"seconds": play.took, "reused": sorted(play.reused), "peak_memory_bytes": peak})
    write_report([folder])
    console.print(_where(settings), highlight=False)


def _where(settings: Any) -> str:
    name, folder = settings.run.name, settings.run.folder
    mine = "" if name == "embedded" else f" run.name={shlex.quote(name)}"
    return (
        f"Everything is at {folder}:\n"
        "  base/ sft/export/ grpo/export/   the models, in Hugging Face format\n"
        "  grpo/metrics.jsonl, tensorboard  the curves; grpo/trajectories: episodes on the way\n"
        "  evaluate/*.parquet               every held-out question and what each arm did about it\n"
        f"  {REPORT}                      all of it to look at: open it in a browser, it asks nobody for anything\n"
        "What to try next:\n"
        f"  mmsearch ask --example 0{mine}              one of the held-out questions, step by step\n"
        f'  mmsearch ask --image picture.png "..."{mine}\n'
        "  mmsearch demo --seeds 3 --ablations         means and intervals, and what each part is good for\n"
        f"  mmsearch grpo grpo.folder=costly reward.search_penalty=0.3{mine}   the same, where searches cost more\n"
        f"  mmsearch dataset inspect{mine}              what it was trained on"
    )
