"""`mmsearch grpo`: asynchronous GRPO from a start model to an exported one.

    <run>/grpo/  manifest.json  metrics.jsonl  tensorboard/  trajectories/  checkpoints/  export/

A run that was stopped or killed continues from its newest whole checkpoint; one that is complete is not run again.
Ctrl-C or SIGTERM: the step under way is finished, a checkpoint is made, and the command ends; a second one ends it
at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from actors.agent.seams import Sampling
from actors.agent.trajectory import Question
from actors.model.load import check_model_folder
from cluster import runtime
from cluster.errors import UserError
from cluster.storage import Folder
from cluster.telemetry import TRACKED
from workflows.grpo import manifest, start_check
from workflows.grpo.cast import Cast, Plan
from workflows.grpo.checkpoint import Checkpoint, CheckpointStore
from workflows.grpo.controller import Controller, RunEnd
from workflows.grpo.ports import BudgetSpent
from workflows.grpo.questions import Questions, load_questions
from workflows.grpo.ray_ports import RayLearner, RaySaver, fetch, restored
from workflows.grpo.recorder import RunRecorder

LEAVINGS = ("checkpoints", "trajectories", "metrics.jsonl", "tensorboard", TRACKED, "export", manifest.FILE)
SHOWN_REASONS = 3


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run finds before anything is started; whatever is wrong with it is said before Ray is there."""

    identity: dict[str, Any]
    questions: Questions
    store: CheckpointStore
    checkpoint: Checkpoint | None


def run(settings: Any, resume: bool = True) -> None:
    """The stage, as the command line and the demo call it. Raise `UserError`, or KeyboardInterrupt when stopped."""
    from workflows.grpo.plan import plan_of

    train(plan_of(settings), resume=resume)


def train(plan: Plan, *, resume: bool = True, console: Console | None = None) -> RunEnd:
    """Run it to its end, or until it is stopped (KeyboardInterrupt, after a checkpoint)."""
    console = console or Console(stderr=True)
    plan.check()
    model = Folder(plan.model)
    if not model.exists("config.json"):
        raise UserError(
            f"GRPO starts from the model at {model}, which is not there: run `mmsearch sft` first,"
            " or name another one with grpo.start_from."
        )
    if model.is_local:
        check_model_folder(model.local_path)  # before anything is started; one on s3:// is checked by who loads it
    plan.folder.ensure_writable()
    if not resume:
        for name in LEAVINGS:
            plan.folder.delete(name)
    identity = identity_of(plan)
    done = manifest.read(plan.folder)
    if done.get("complete") and done.get("identity") == identity and done.get("steps") == plan.grpo.steps:
        where = plan.folder / "export"
        console.print(f"GRPO: the {plan.grpo.steps} steps of this configuration are done already: {where}")
        return RunEnd(plan.grpo.steps, True, "it was complete already")
    questions = load_questions(plan.questions, plan.images)
    _tell_questions(questions, console)
    store = CheckpointStore(plan.folder / "checkpoints", identity, plan.grpo.keep_checkpoints, console.print)
    start = Start(identity, questions, store, store.latest())
    with runtime.connect(plan.cluster) as cluster:
        try:
            end = asyncio.run(_train(plan, start, cluster, console))
        except BudgetSpent as error:
            raise UserError(f"{error}. A checkpoint was made; raise the budget and start again to continue.") from error
    if end.stopped:  # also when it came too late: whoever follows is not to begin
        raise KeyboardInterrupt(end.reason)
    return end


def identity_of(plan: Plan) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued."""
    g = plan.grpo
    return {
        "start model": Folder(plan.model).fingerprint(".safetensors"),
        "questions": plan.questions.fingerprint(".parquet"),
        "run.seed": plan.seed,
        "preset": plan.preset,
        "grpo.groups_per_step": g.groups_per_step,
        "grpo.group_size": g.group_size,
        "grpo.max_staleness": g.max_staleness,
        "grpo.window": g.window,
        "grpo.temperature": g.temperature,
        "learner.objective": dataclasses.asdict(plan.learner.objective),
        "learner.backend.kind": plan.learner.backend.kind,
        "reward": dataclasses.asdict(plan.reward.rule()),
    }


async def _train(plan: Plan, start: Start, cluster: runtime.Cluster, console: Console) -> RunEnd:
    began = time.time()
    questions, checkpoint = start.questions, start.checkpoint
    console.print(f"GRPO: starting {plan.grpo.samplers} samplers and {plan.grpo.ranks} learner ranks")
    cast = Cast(plan, cluster)
    try:
        await cast.ready(plan.grpo.ready_timeout_s)
        if checkpoint:
            console.print(f"GRPO: continuing after step {checkpoint.state.step} of {plan.grpo.steps}")
            await cast.ranks.load((checkpoint.folder / "learner").address)
        else:
            await _check_start(plan, cast, questions.by_id, console)
        end, last = await _learn(plan, cast, start, console)
        if end.complete:
            await cast.ranks.export((plan.folder / "export").address)
            took = f"{end.step} steps, this part in {time.time() - began:.0f} s"
            console.print(f"GRPO: {took}; the model is at {plan.folder / 'export'}")
    finally:
        await cast.close()
    manifest.write(
        plan.folder,
        identity=start.identity,
        settings=dict(plan.resolved),
        seed=plan.seed,
        steps=plan.grpo.steps,
        step=end.step,
        complete=end.complete,
        reason=end.reason,
        questions=len(questions.by_id),
        questions_dropped=questions.dropped,
        dropped_because=list(questions.reasons),
        seconds=time.time() - began,
        last_metrics={k: v for k, v in last.items() if v == v},
    )
    return end


async def _learn(plan: Plan, cast: Cast, start: Start, console: Console) -> tuple[RunEnd, Mapping[str, float]]:
    checkpoint, questions = start.checkpoint, start.questions.by_id
    done = checkpoint.state.step if checkpoint else 0
    finished = restored(checkpoint, questions) if checkpoint else []
    g = plan.grpo
    per_step = g.trajectories_per_step
    with RunRecorder(plan.folder, fetch, g.steps, done, per_step, console, plan.tracking) as recorder:
        controller = Controller(
            g,
            questions,
            cast.samplers,
            RayLearner(cast.ranks),
            RaySaver(start.store, cast.ranks),
            recorder,
            seed=plan.seed,
            state=checkpoint.state if checkpoint else None,
            finished=finished,
        )
        with _stopped_by_signals(controller):
            end = await controller.run()
        return end, recorder.last


@contextmanager
def _stopped_by_signals(controller: Controller) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops between two steps; the second one cancels everything."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if received and task is not None:
            task.cancel()
        received.append(number)
        controller.recorder.say(f"{number.name}: finishing the step under way, then a checkpoint; again: at once")
        controller.stop(number.name)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


async def _check_start(plan: Plan, cast: Cast, questions: Mapping[str, Question], console: Console) -> None:
    g = plan.grpo
    if not g.start_check_questions:
        return
    chosen = start_check.choose(questions, g.start_check_questions, plan.seed)
    console.print(f"GRPO: asking {len(chosen)} questions to see what there is to reinforce")
    sampling = Sampling(temperature=g.temperature, top_p=g.top_p, max_tokens=g.max_tokens)
    rows = start_check.rows(await start_check.play(cast.samplers, chosen, sampling, g.episode_timeout_s))
    console.print(start_check.table_of(rows))
    for warning in start_check.warnings(rows):
        console.print(f"[bold yellow]warning:[/] {warning}")


def _tell_questions(questions: Questions, console: Console) -> None:
    console.print(f"GRPO: {len(questions.by_id)} questions")
    if questions.dropped:
        shown = "; ".join(questions.reasons[:SHOWN_REASONS])
        console.print(f"[yellow]{questions.dropped} rows are no questions and were dropped[/]: {shown}", markup=True)
