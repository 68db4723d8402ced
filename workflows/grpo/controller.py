"""The controller of asynchronous GRPO: one asyncio process that owns the version, the slots and the cursor.

      questions                            +------------------- release, version + 1 -------------------+
          |                                v                                                            |
    ADMIT loop --- slot ---> WorkBuffer (WAITING > INFLIGHT > FINISHED > TAKEN > gone)                  |
    waits for: a free slot      |                   ^             |                                     |
                                |            summary, payload     | a batch                             |
                                v                   |             v                                     |
          one ROLL task per group: dispatches its episodes    LEARN loop: take > train > publish > update
          over the fleet (dispatch.py)                        waits for: P groups; the learner; every
          waits for: a seat; each episode                     live sampler. Between steps: record, save
                                                              and, before it publishes:
    EVALUATE now and then, what was just published: <-------- until the evaluation has ended
    held-out questions, first in the queue for seats

    TEND loop: probes samplers, fences the dead, revives them; MEMBERSHIP loop: adds those that there is room for
    TOOLS loop: asks the search workers what waits there, which the ADMIT loop heeds (admission.py)
    REPORT loop: when nothing progresses, says who waits for whom

Always true:
- only the LEARN loop changes `version`, once per step, when every live sampler runs the new weights;
- a failure of the infrastructure is never a reward: the episode is reissued, then masked, and its group cancelled
  if too few are left;
- a checkpoint is taken between two steps, so a group is either in the weights that it holds or in the buffer,
  never in both;
- nothing is published while an evaluation is under way (online_evaluation.py), and no question of one is trained on;
- `max_staleness: 0` is this same program with P slots.

Time is the event loop's clock, so that a loop with a virtual clock tests hours in milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.agent.episode import Limits
from actors.agent.trajectory import Question
from actors.search.load import LoadSample
from cluster.storage_failures import Patience, storage_failed
from workflows.grpo import ports
from workflows.grpo.admission import Admission
from workflows.grpo.dispatch import Fleet
from workflows.grpo.evaluation_state import EvaluationState
from workflows.grpo.membership import Membership
from workflows.grpo.online_evaluation import OnlineEvaluation
from workflows.grpo.places import FleetLimits
from workflows.grpo.ports import ControllerState, GroupResult
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.rollouts import Rollouts, RunFailed, cancel_all
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.step_metrics import sampled_metrics, step_metrics
from workflows.grpo.tools_watch import follow
from workflows.grpo.watch import Watch
from workflows.grpo.work_buffer import GroupId, GroupState, WorkBuffer

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: `complete` when all steps are done, else `reason` says who stopped it."""

    step: int
    complete: bool
    reason: str
    stopped: bool = False  # somebody asked for it, perhaps too late to be heeded


class Controller:
    """Runs the loops of one GRPO run. Build it fresh, or from a checkpoint's state and its finished groups."""

    def __init__(
        self,
        settings: GrpoSettings,
        questions: Mapping[str, Question],
        samplers: Sequence[ports.Sampler],
        learner: ports.Learner,
        saver: ports.Saver,
        recorder: ports.Recorder,
        seed: int = 0,
        state: ControllerState | None = None,
        finished: Sequence[GroupResult] = (),
        held_out: Mapping[str, Question] | None = None,
        keeper: ports.Keeper | None = None,
        tools: ports.Tools | None = None,
        recruiter: ports.Recruiter | None = None,
        episode_s: float = Limits().longest_s,
    ) -> None:
        """`episode_s`: seconds within which a sampler has ended an episode, whatever hangs."""
        self.settings, self.questions = settings, questions
        self.learner, self.saver, self.recorder = learner, saver, recorder
        self.fleet = Fleet(samplers, FleetLimits.of(settings, episode_s), recorder.say)
        self.admission = Admission(settings.admission, settings.groups_per_step, settings.group_size)
        self._tools, self._recruiter = tools, recruiter
        if state is None:
            self.buffer = WorkBuffer(settings.groups_per_step, settings.max_staleness, settings.window)
            self.cursor = PromptsCursor(questions, seed)
            self.step = self.version = 0
            self.totals: Counter[str] = Counter()
        else:
            self.buffer = WorkBuffer.restore(state.buffer)
            self.cursor = PromptsCursor.restore(questions, state.cursor)
            self.step, self.version, self.totals = state.step, state.version, Counter(state.totals)
            self._cancel_lost({group.id for group in finished})
        seen = state.evaluation if state else EvaluationState()
        self.evaluation = OnlineEvaluation(settings, held_out or {}, self.fleet, keeper, recorder, self.totals, seen)
        if both := self.questions.keys() & (held_out or {}):
            raise ValueError(f"{len(both)} questions would be trained on and evaluated with, {min(both)!r} for one")
        self._changed = asyncio.Event()  # something that one of the loops may wait for has happened
        self.rollouts = Rollouts(
            settings, questions, self.buffer, self.cursor, self.fleet, self.admission, self.totals,
            [group for group in finished if group.id in self.buffer], self._changed.set, self._ended,
        )  # fmt: skip
        self._stop_reason = ""
        self._failure: BaseException | None = None  # ends the run at the next border of a step
        self._saved: tuple[int, EvaluationState] | None = None  # step and evaluations that the newest checkpoint knows
        self._saving = Patience(recorder.say)

    # -- the run --

    async def run(self) -> RunEnd:
        """All steps, or until `stop`. Raise what ended the run early, after a checkpoint where the step allows one.

        `RunFailed`, `NoSampler` and `BudgetSpent` come between two steps; what `train` or `publish` raises does not,
        and then the newest checkpoint is an older one.
        """
        s = self.settings
        self.watch = Watch(s, self.buffer, self.fleet, self.totals, asyncio.get_running_loop().time)
        self.rollouts.watch = self.watch
        self.watch.learner("publish")
        first = await self._within(s.publish_timeout_s, "publishing", self.learner.publish(self.version))
        await self._within(s.ready_timeout_s, "starting the samplers", self.fleet.start(first))
        self.evaluation.progress = self.watch.progress
        self.evaluation.begin(self.version, self._ended)
        others = [asyncio.create_task(loop) for loop in self._loops()]
        for loop in others:
            loop.add_done_callback(self._ended)
        try:
            await self._learn()
        except RunFailed as error:
            self._failure = self._failure or error
        finally:
            await cancel_all([*others, *self.rollouts.tasks, *self.evaluation.under_way])
        early = self.evaluation.stop_reason
        complete = self.step >= s.steps or bool(early)
        if not (complete and self._saved == (self.step, self.evaluation.state)):
            await self._last_checkpoint()
        if self._failure:
            raise self._failure
        reason = self._stop_reason or early or "all steps are done"
        return RunEnd(self.step, complete, reason, bool(self._stop_reason))

    def _loops(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs beside learning."""
        loops = [self._admit(), self.fleet.tend(), self.watch.report_stalls(self._report, self.recorder.say)]
        if self._tools:
            loops.append(follow(self._tools, self._tools_seen))
        if self._recruiter and (most := self.settings.max_samplers):
            loops.append(Membership(self.fleet, self._recruiter, most, self.recorder.say).run())
        return loops

    async def _last_checkpoint(self) -> None:
        if self._failure and self.buffer.groups(GroupState.TAKEN):
            return  # the step broke off: whether the learner's state has learned from the batch is not known
        try:
            await self.checkpoint()
        except Exception as error:
            if self._failure:  # the reason why the run ends comes first, and carries this one with it
                raise self._failure from error
            if isinstance(error, OSError):
                raise storage_failed(f"the checkpoint of step {self.step} could not be written", error) from error
            raise

    def stop(self, reason: str) -> None:
        """Finish the step under way, make a checkpoint, and end. Safe to call from the loop's signal handlers."""
        self._stop_reason = self._stop_reason or reason
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._failure = self._failure or error
            self.stop(f"{type(error).__name__}: {error}")
        self._changed.set()

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Several loops wait on one event: each looks again whenever anything changes."""
        while not ready():
            self._changed.clear()
            await self._changed.wait()

    async def _within(self, seconds: float, what: str, work: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise RunFailed(f"{what} took longer than {seconds:.0f} s\n{self._report()}") from None

    def _report(self) -> str:
        return self.watch.report(self.step, self.version)

    # -- admit: a question for every free slot --

    async def _admit(self) -> None:
        for held in self.buffer.groups(GroupState.WAITING):  # of before a restart
            self.rollouts.begin(held.id)
        while True:
            await self._until(self._may_admit)
            group = self.buffer.admit(self.cursor.next(), self.version)
            if group is not None:
                self.rollouts.begin(group)

    def _may_admit(self) -> bool:
        """A slot is free, the steps that are left can use one more group, and it would not only be parked."""
        wanted = (self.settings.steps - self.step) * self.settings.groups_per_step
        fits = self.buffer.free_slots > 0 and self.buffer.held < wanted
        begins = fits and self.admission.may_begin(self.buffer.upcoming, self.fleet.places.kv_full)
        self.watch.holds(self.admission.hold if fits else "")
        return begins

    def _tools_seen(self, tools: LoadSample) -> None:
        self.admission.look(asyncio.get_running_loop().time(), tools)
        self.watch.tools_seen(tools)
        self._changed.set()

    def _cancel_lost(self, kept: Set[GroupId]) -> None:
        """After a restart: finished groups without their payloads, and questions that the dataset no longer has."""
        for held in self.buffer.groups():
            if held.question_id not in self.questions:
                self.buffer.cancel(held.id, "question_gone")
            elif held.state is GroupState.FINISHED and held.id not in kept:
                self.buffer.cancel(held.id, "payload_lost")
                self.cursor.give_back(held.question_id, self.settings.question_retries)

    # -- learn: a step, again and again --

    async def _learn(self) -> None:
        while self.step < self.settings.steps and not self.evaluation.stop_reason:
            groups = await self._batch()
            if not groups:
                return
            await self._step([self.rollouts.results[group] for group in groups])
            if self.step % self.settings.checkpoint_every == 0 and self.step < self.settings.steps:
                await self._checkpoint_on_the_way()
        await self.evaluation.end()  # the last checkpoint, which `run` makes, knows what it showed

    async def _batch(self) -> list[GroupId]:
        """The groups of the next step; none when the run is to stop."""
        taken: list[GroupId] = []

        def ready() -> bool:
            ends = self._stop_reason or self.evaluation.stop_reason
            if not ends:
                taken.extend(self.buffer.take(self.version) or [])
                self.rollouts.forget_ended()
            return bool(taken or ends)

        self.watch.learner_waits()
        await self._within(self.settings.batch_timeout_s, "waiting for a batch", self._until(ready))
        self._changed.set()  # what is in training is none of the groups that admission counts
        return taken

    async def _step(self, batch: Sequence[GroupResult]) -> None:
        """Train on a batch, make the new weights live everywhere, and only then free its slots."""
        s, clock = self.settings, asyncio.get_running_loop().time
        self.watch.learner("")
        stats = await self._within(s.train_timeout_s, "training", self.learner.train(batch, self.version))
        trained_at = clock()
        self.watch.learner("evaluation")
        await self.evaluation.end()
        self.watch.learner("publish")
        ticket = await self._within(s.publish_timeout_s, "publishing", self.learner.publish(self.version + 1))
        for group in self.buffer.expired(self.version + 1):  # before the samplers pause, which only saves work
            await self.rollouts.end(group, "expired")
        await self.fleet.update(ticket)  # ends in time: who cannot load is fenced
        metrics = step_metrics(batch, self.version) | {f"learner/{k}": float(v) for k, v in stats.items()}
        metrics |= sampled_metrics(self.rollouts.sampled)
        metrics |= {"publish_lag_s": clock() - trained_at, "step": self.step + 1.0, "version": self.version + 1.0}
        self.version += 1
        self.step += 1
        self.buffer.release([group.id for group in batch], self.version)
        self.rollouts.trained(batch)
        self.totals["tokens/trained"] += sum(group.tokens for group in batch)
        self.evaluation.begin(self.version, self._ended)
        self.watch.progress()
        self._changed.set()
        lap = self.watch.lap()
        self.watch.learner("record")
        record = self.recorder.step(self.step, metrics | lap, batch)
        await self._within(s.checkpoint_timeout_s, "writing the step down", record)

    async def _checkpoint_on_the_way(self) -> None:
        """One that storage refuses is said; the newest one stays, and the next one is the next try, a few times."""
        try:
            await self.checkpoint()
        except OSError as error:
            what, then = f"the checkpoint of step {self.step} could not be written", self.settings.checkpoint_every
            self._saving.failed(what, error, f"the one before stays, and step {self.step + then} tries again")
        else:
            self._saving.worked()

    async def checkpoint(self) -> None:
        """Between two steps: the learner's state, this object's, and the payloads of the finished groups."""
        self.watch.learner("checkpoint")
        finished = [self.rollouts.results[g.id] for g in self.buffer.groups(GroupState.FINISHED)]
        state = self.state()
        save = self.saver.save(state, finished)
        await self._within(self.settings.checkpoint_timeout_s, "the checkpoint", save)
        self._saved = (state.step, state.evaluation)
        self.watch.progress()

    def state(self) -> ControllerState:
        """What continues this run elsewhere, together with the finished groups. Raise `Misuse` within a step."""
        buffer, cursor = self.buffer.snapshot(), self.cursor.snapshot()
        return ControllerState(self.step, self.version, buffer, cursor, dict(self.totals), self.evaluation.state)
