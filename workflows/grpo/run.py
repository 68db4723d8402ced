"""`mmsearch grpo`: asynchronous GRPO from a start model to an exported one.

    <run>/grpo/  manifest.json  metrics.jsonl  tensorboard/  trajectories/  checkpoints/  best/  export/

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
from cluster.storage_failures import storage_told
from cluster.telemetry import TRACKED
from workflows.grpo import manifest, start_check
from workflows.grpo.balance import with_free_share
from workflows.grpo.best_models import BestModels
from workflows.grpo.cast import Cast, Plan
from workflows.grpo.checkpoint import Checkpoint, CheckpointStore
from workflows.grpo.controller import Controller, RunEnd
from workflows.grpo.evaluation_state import Best
from workflows.grpo.held_out import hold_out
from workflows.grpo.ports import BudgetSpent, ControllerState
from workflows.grpo.questions import Questions, load_questions
from workflows.grpo.ray_ports import RaySaver, fetch, restored, spending
from workflows.grpo.recorder import RunRecorder
from workflows.grpo.refusals import Done, pace, spent_budgets, told
from workflows.grpo.work_buffer import GroupState

LEAVINGS = ("checkpoints", "trajectories", "metrics.jsonl", "tensorboard", TRACKED, "best", "export", manifest.FILE)
SHOWN_REASONS = 3
TOTALS_S = 5.0  # for search workers to tell what they did, at the end of a run


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run finds before anything is started; whatever is wrong with it is said before Ray is there."""

    identity: dict[str, Any]
    questions: Questions  # to learn from
    held_out: Mapping[str, Question]  # of the same dataset, to evaluate with
    store: CheckpointStore
    checkpoint: Checkpoint | None


def run(settings: Any, resume: bool = True) -> None:
    """The stage, as the command line and the demo call it. Raise `UserError`, or KeyboardInterrupt when stopped."""
    from workflows.grpo.plan import plan_of

    train(plan_of(settings), resume=resume)


def progress(settings: Any) -> list[str]:
    """What changes as a run gets further: its checkpoints."""
    return (settings.run.folder / settings.grpo.folder / "checkpoints").list()


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
    if done.get("complete") and _same(done, _ending_of(plan) | {"identity": identity}):
        step = int(done.get("step", plan.grpo.steps))
        where = plan.folder / "export"
        console.print(f"GRPO: the {step} steps of this configuration are done already: {where}")
        return RunEnd(step, True, "it was complete already")
    questions = load_questions(plan.questions, plan.images)
    _tell_questions(questions, console)
    asked = plan.grpo.evaluation
    learned, held_out = hold_out(questions.by_id, asked.questions if asked.every else 0, plan.seed)
    if plan.grpo.search_free is not None:
        learned = with_free_share(learned, plan.grpo.search_free, plan.seed)
        console.print(f"GRPO: {len(learned)} of them are learned from, {plan.grpo.search_free:.0%} search-free")
    if held_out:
        console.print(f"GRPO: {len(held_out)} of them are held out, for an evaluation every {asked.every} steps")
    store = CheckpointStore(plan.folder / "checkpoints", identity, plan.grpo.keep_checkpoints, console.print)
    start = Start(identity, dataclasses.replace(questions, by_id=learned), held_out, store, store.latest())
    with runtime.connect(plan.cluster) as cluster, storage_told("the run ended, because storage refused"):
        end = asyncio.run(_train(plan, start, cluster, console))
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
        **({"pictures": plan.pictures.given} if plan.pictures.given else {}),
        **({"grpo.search_free": g.search_free} if g.search_free is not None else {}),
        **({"grpo.evaluation.questions": g.evaluation.questions} if g.evaluation.every else {}),
        **({"grpo.evaluation.metric": g.evaluation.metric} if g.evaluation.every else {}),
    }


def _ending_of(plan: Plan) -> dict[str, Any]:
    """What may change from part to part, and decides when a run is complete and with which weights."""
    g, e = plan.grpo, plan.grpo.evaluation
    evaluation = {"every": e.every, "patience": e.patience, "min_delta": e.min_delta} if e.every else None
    return {"steps": g.steps, "evaluation": evaluation, "export": g.export}


def _same(done: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a manifest agrees; one from before there were evaluations ran without."""
    return all({"export": "last", **done}.get(key) == value for key, value in now.items())


async def _train(plan: Plan, start: Start, cluster: runtime.Cluster, console: Console) -> RunEnd:
    began = time.time()
    questions, checkpoint = start.questions, start.checkpoint
    console.print(f"GRPO: starting {plan.grpo.samplers} samplers and {plan.grpo.ranks} learner ranks")
    cast = Cast(plan, cluster)
    try:
        await cast.ready(plan.grpo.ready_timeout_s)
        if checkpoint:
            console.print(f"GRPO: continuing after step {checkpoint.state.step} of {plan.grpo.steps}")
            await cast.learner.load((checkpoint.folder / "learner").address, plan.grpo.checkpoint_timeout_s)
        else:
            await _check_start(plan, cast, questions.by_id, console)
        best = BestModels(
            plan.folder / "best",
            cast.ranks.keep,
            plan.grpo.keep_checkpoints,
            plan.grpo.train_timeout_s + plan.grpo.checkpoint_timeout_s,  # its turn comes after the step under way
            console.print,
        )
        controller, end, last = await _learn(plan, cast, start, best, console)
        found = controller.evaluation.state.best
        if end.complete:
            exported = await _export(plan, cast, best, found, console)
            took = f"{end.step} steps ({end.reason}), this part in {time.time() - began:.0f} s"
            console.print(f"GRPO: {took}; the {exported} model is at {plan.folder / 'export'}")
    finally:
        searched = await cast.toolbox.totals(TOTALS_S)
        await cast.close()
        if searched.calls:
            console.print(f"GRPO: searches: {searched}", highlight=False)
    manifest.write(
        plan.folder,
        identity=start.identity,
        settings=dict(plan.resolved),
        seed=plan.seed,
        step=end.step,
        complete=end.complete,
        reason=end.reason,
        **_ending_of(plan),
        best=dataclasses.asdict(found) if found else None,
        searches=dataclasses.asdict(searched),  # of this part
        questions=len(questions.by_id),
        questions_held_out=len(start.held_out),
        questions_dropped=questions.dropped,
        dropped_because=list(questions.reasons),
        seconds=time.time() - began,
        last_metrics={k: v for k, v in last.items() if v == v},
    )
    return end


async def _export(plan: Plan, cast: Cast, models: BestModels, best: Best | None, console: Console) -> str:
    """What `grpo.export` asks for goes to export/; returns which it was."""
    target = plan.folder / "export"
    if plan.grpo.export == "best" and best:
        await models.export(best, target)
        return f"best (step {best.step}, {best.metric} {best.value:.3f})"
    if plan.grpo.export == "best":
        console.print("[yellow]GRPO: no evaluation counted, so there is no best model: the last one is exported[/]")
    await cast.learner.export(target.address, plan.grpo.checkpoint_timeout_s)
    return "last"


def _resumed(start: Start, best: BestModels, keeps: bool, console: Console) -> ControllerState | None:
    """The checkpoint's state; without its best version if the weights of that one are gone."""
    if not start.checkpoint:
        return None
    state = start.checkpoint.state
    if not keeps or best.resume(state.evaluation.best):
        return state
    console.print("[yellow]GRPO: the best weights so far are not there any more: the next evaluation's are the best[/]")
    return dataclasses.replace(state, evaluation=dataclasses.replace(state.evaluation, best=None))


async def _learn(
    plan: Plan, cast: Cast, start: Start, best: BestModels, console: Console
) -> tuple[Controller, RunEnd, Mapping[str, float]]:
    questions = start.questions.by_id
    state = _resumed(start, best, bool(plan.grpo.evaluation.every and plan.grpo.evaluation.best), console)
    done = state.step if state else 0
    evaluated = state.evaluation.evaluated if state else -1
    finished = restored(start.checkpoint, questions) if start.checkpoint else []
    g = plan.grpo
    per_step = g.trajectories_per_step
    with RunRecorder(plan.folder, fetch, g.steps, done, per_step, console, plan.tracking, evaluated) as recorder:
        controller = Controller(
            g,
            questions,
            cast.samplers,
            cast.learner,
            RaySaver(start.store, cast.ranks, best),
            recorder,
            seed=plan.seed,
            state=state,
            finished=finished,
            held_out=start.held_out,
            keeper=best,
            tools=cast.tools,
            recruiter=cast.recruiter,
            episode_s=plan.episode_s,
        )
        spent, done_before = await spending(plan.search), _done(controller)
        with _stopped_by_signals(controller):
            try:
                end = await controller.run()
            except BudgetSpent as refusal:
                budgets = spent_budgets(plan.search, spent, await spending(plan.search))
                part = pace(done_before, _done(controller), g)
                raise UserError(told(str(refusal), budgets, part, plan.search.cassette.mode)) from refusal
        return controller, end, recorder.last


def _done(controller: Controller) -> Done:
    buffer = controller.buffer
    kept = buffer.trained + len(buffer.groups(GroupState.FINISHED, GroupState.TAKEN))
    dropped = buffer.filtered.total() + buffer.cancelled.total()
    return Done(int(controller.totals["episodes/finished"]), kept, kept + dropped)


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
    rows = start_check.rows(await start_check.play(cast.samplers, chosen, sampling, plan.episode_s))
    console.print(start_check.table_of(rows))
    for warning in start_check.warnings(rows):
        console.print(f"[bold yellow]warning:[/] {warning}")


def _tell_questions(questions: Questions, console: Console) -> None:
    console.print(f"GRPO: {len(questions.by_id)} questions")
    if questions.dropped:
        shown = "; ".join(questions.reasons[:SHOWN_REASONS])
        console.print(f"[yellow]{questions.dropped} rows are no questions and were dropped[/]: {shown}", markup=True)
