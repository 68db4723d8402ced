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

    TEND loop: probes samplers, fences the dead, revives them
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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question
from cluster.errors import RunBroken
from workflows.grpo.dispatch import Episode, Fleet, FleetLimits
from workflows.grpo.evaluation_state import EvaluationState
from workflows.grpo.online_evaluation import OnlineEvaluation
from workflows.grpo.ports import ControllerState, GroupResult, Keeper, Learner, Recorder, Sampler, Saver
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.step_metrics import sampled_metrics, step_metrics
from workflows.grpo.watch import Watch
from workflows.grpo.work_buffer import GroupId, GroupState, WorkBuffer

Answer = TypeVar("Answer")

FLAT = "zero_variance"
INFRA = "infra"
DATA = "data"
BARREN_ROUNDS = 2  # times all slots: groups cancelled in a row, with none finished between, that stop the run
CANCEL_TASKS_S = 30.0  # for tasks to notice that they were cancelled


class RunFailed(RunBroken):
    """The run cannot go on; what it had up to its last step is in a checkpoint."""


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
        samplers: Sequence[Sampler],
        learner: Learner,
        saver: Saver,
        recorder: Recorder,
        seed: int = 0,
        state: ControllerState | None = None,
        finished: Sequence[GroupResult] = (),
        held_out: Mapping[str, Question] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.settings, self.questions = settings, questions
        self.learner, self.saver, self.recorder = learner, saver, recorder
        self.fleet = Fleet(samplers, _limits(settings), recorder.say)
        self._results = {group.id: group for group in finished}
        if state is None:
            self.buffer = WorkBuffer(settings.groups_per_step, settings.max_staleness, settings.window)
            self.cursor = PromptsCursor(questions, seed)
            self.step = self.version = 0
            self.totals: Counter[str] = Counter()
        else:
            self.buffer = WorkBuffer.restore(state.buffer)
            self.cursor = PromptsCursor.restore(questions, state.cursor)
            self.step, self.version, self.totals = state.step, state.version, Counter(state.totals)
            self._cancel_lost()
        seen = state.evaluation if state else EvaluationState()
        self.evaluation = OnlineEvaluation(settings, held_out or {}, self.fleet, keeper, recorder, self.totals, seen)
        if both := self.questions.keys() & (held_out or {}):
            raise ValueError(f"{len(both)} questions would be trained on and evaluated with, {min(both)!r} for one")
        self._rolls: dict[GroupId, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()  # something that one of the loops may wait for has happened
        self._stop_reason = ""
        self._failure: BaseException | None = None  # ends the run at the next border of a step
        self._barren = 0  # groups that the infrastructure spoiled since one was finished
        self._flat = 0  # groups filtered since the last step
        self._sampled: list[GroupResult] = []  # finished since the last step, filtered ones too; without payloads
        self._saved_step = -1

    # -- the run --

    async def run(self) -> RunEnd:
        """All steps, or until `stop`. Raise what ended the run early, after a checkpoint where the step allows one.

        `RunFailed`, `NoSampler` and `BudgetSpent` come between two steps; what `train` or `publish` raises does not,
        and then the newest checkpoint is an older one.
        """
        s = self.settings
        self.watch = Watch(s, self.buffer, self.fleet, self.totals, asyncio.get_running_loop().time)
        self.watch.learner("publish")
        first = await self._within(s.publish_timeout_s, "publishing", self.learner.publish(self.version))
        await self._within(s.ready_timeout_s, "starting the samplers", self.fleet.start(first))
        self.evaluation.progress = self.watch.progress
        self.evaluation.begin(self.version, self._ended)
        others = [asyncio.create_task(loop) for loop in (self._admit(), self.fleet.tend(), self._report_stalls())]
        for loop in others:
            loop.add_done_callback(self._ended)
        try:
            await self._learn()
        except RunFailed as error:
            self._failure = self._failure or error
        finally:
            await _cancel_all([*others, *self._rolls.values(), *self.evaluation.under_way])
        early = self.evaluation.stop_reason
        complete = self.step >= s.steps or bool(early)
        if not (complete and self._saved_step == self.step):
            await self._last_checkpoint()
        if self._failure:
            raise self._failure
        reason = self._stop_reason or early or "all steps are done"
        return RunEnd(self.step, complete, reason, bool(self._stop_reason))

    async def _last_checkpoint(self) -> None:
        if self._failure and self.buffer.groups(GroupState.TAKEN):
            return  # the step broke off: whether the learner's state has learned from the batch is not known
        try:
            await self.checkpoint()
        except Exception as error:
            if self._failure:  # the reason why the run ends comes first, and carries this one with it
                raise self._failure from error
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

    async def _report_stalls(self) -> None:
        quiet = self.settings.stall_report_s
        while True:
            await asyncio.sleep(quiet / 2)
            if self.watch.quiet_s >= quiet:
                self.recorder.say(self._report())

    # -- admit: a question for every free slot --

    async def _admit(self) -> None:
        for held in self.buffer.groups(GroupState.WAITING):  # of before a restart
            self._roll_out(held.id)
        while True:
            await self._until(self._may_admit)
            group = self.buffer.admit(self.cursor.next(), self.version)
            if group is not None:
                self._roll_out(group)

    def _may_admit(self) -> bool:
        """A slot is free, and the steps that are left can use one more group."""
        wanted = (self.settings.steps - self.step) * self.settings.groups_per_step
        return self.buffer.free_slots > 0 and self.buffer.held < wanted

    def _roll_out(self, group: GroupId) -> None:
        self.buffer.start(group)
        task = asyncio.create_task(self._roll(group), name=f"group {group}")
        self._rolls[group] = task
        task.add_done_callback(lambda _: self._rolls.pop(group, None))
        task.add_done_callback(self._ended)

    def _cancel_lost(self) -> None:
        """After a restart: finished groups without their payloads, and questions that the dataset no longer has."""
        for held in self.buffer.groups():
            if held.question_id not in self.questions:
                self.buffer.cancel(held.id, "question_gone")
            elif held.state is GroupState.FINISHED and held.id not in self._results:
                self.buffer.cancel(held.id, "payload_lost")
                self.cursor.give_back(held.question_id, self.settings.question_retries)

    # -- roll: the episodes of one group --

    async def _roll(self, group: GroupId) -> None:
        held = self.buffer.get(group)
        question = self.questions[held.question_id]
        s = self.settings
        sampling = Sampling(temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens)
        try:
            async with asyncio.TaskGroup() as siblings:
                tasks = [
                    siblings.create_task(self._episode(question, i, sampling, (int(group), i)))
                    for i in range(s.group_size)
                ]
        except ExceptionGroup as errors:  # NoSampler or BudgetSpent: the first says why the run ends
            raise errors.exceptions[0] from None
        self._collect(group, question, [task.result() for task in tasks])

    async def _episode(self, question: Question, index: int, sampling: Sampling, priority: tuple[int, int]) -> Episode:
        episode = await self.fleet.episode(question, index, sampling, priority)
        self.totals["tokens/wasted_by_failures"] += episode.wasted_tokens
        self.totals["episodes/failed_attempts"] += len(episode.failures)
        if episode.failures:
            self.watch.last_failure = episode.failures[-1]
        if episode.summary is not None:
            self.totals["tokens/sampled"] += episode.summary.sampled_tokens
            self.totals["episodes/finished"] += 1
            self.watch.progress()
        return episode

    def _collect(self, group: GroupId, question: Question, episodes: Sequence[Episode]) -> None:
        """Finish, filter or cancel a group whose episodes have all ended."""
        valid = [(e.summary, e.payload) for e in episodes if e.summary is not None]
        result = GroupResult(
            id=group,
            question=question,
            admitted_at=self.buffer.get(group).admitted_at,
            summaries=tuple(s for s, _ in valid),
            payloads=tuple(p for _, p in valid),
            masked=len(episodes) - len(valid),
        )
        self.totals["episodes/masked"] += result.masked
        if any(s.failure is Failure.DATA for s in result.summaries):
            self._cancel(group, DATA, result.tokens)
        elif len(valid) < self.settings.min_siblings:
            self._cancel(group, INFRA, result.tokens)
            if not self.cursor.give_back(question.id, self.settings.question_retries):
                self.totals["questions/given_up"] += 1
            self._barren += 1
            if self._barren >= BARREN_ROUNDS * self.buffer.slots:
                raise RunFailed(f"{self._barren} groups failed in a row, the last one so: {self.watch.last_failure}")
        else:
            self._barren = 0
            self.buffer.finish(group, result.oldest_version)
            self._sampled.append(replace(result, payloads=()))
            enough = self._flat >= self.settings.refill_limit * self.settings.groups_per_step
            if self.settings.filter_zero_variance and result.flat and not enough:
                self.buffer.filter(group, FLAT)
                self._flat += 1
                self.totals["tokens/wasted_by_filter"] += result.tokens
            else:
                self._results[group] = result
        self._changed.set()

    def _cancel(self, group: GroupId, reason: str, tokens: int = 0) -> None:
        result = self._results.pop(group, None)
        self.totals["tokens/wasted_by_cancelling"] += result.tokens if result else tokens
        self.buffer.cancel(group, reason)
        self._changed.set()

    # -- learn: a step, again and again --

    async def _learn(self) -> None:
        while self.step < self.settings.steps and not self.evaluation.stop_reason:
            groups = await self._batch()
            if not groups:
                return
            await self._step([self._results[group] for group in groups])
            if self.step % self.settings.checkpoint_every == 0 and self.step < self.settings.steps:
                await self.checkpoint()
        await self.evaluation.end()  # the last checkpoint, which `run` makes, knows what it showed

    async def _batch(self) -> list[GroupId]:
        """The groups of the next step; none when the run is to stop."""
        taken: list[GroupId] = []

        def ready() -> bool:
            ends = self._stop_reason or self.evaluation.stop_reason
            if not ends:
                taken.extend(self.buffer.take(self.version) or [])
                self._forget_ended()
            return bool(taken or ends)

        self.watch.learner_waits()
        await self._within(self.settings.batch_timeout_s, "waiting for a batch", self._until(ready))
        return taken

    def _forget_ended(self) -> None:
        """Drop the payloads of groups that the buffer found too old."""
        for group in [g for g in self._results if g not in self.buffer]:
            self.totals["tokens/wasted_by_staleness"] += self._results.pop(group).tokens
            self._changed.set()

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
        await self._cancel_expired(self.version + 1)
        await self.fleet.update(ticket)  # ends in time: who cannot load is fenced
        metrics = step_metrics(batch, self.version) | {f"learner/{k}": float(v) for k, v in stats.items()}
        metrics |= sampled_metrics(self._sampled)
        metrics |= {"publish_lag_s": clock() - trained_at, "step": self.step + 1.0, "version": self.version + 1.0}
        self.version += 1
        self.step += 1
        self.buffer.release([group.id for group in batch], self.version)
        for group in batch:
            del self._results[group.id]
        self.totals["tokens/trained"] += sum(group.tokens for group in batch)
        self._flat, self._sampled = 0, []
        self.evaluation.begin(self.version, self._ended)
        self.watch.progress()
        self._changed.set()
        await self.recorder.step(self.step, metrics | self.watch.lap(), batch)

    async def _cancel_expired(self, version: int) -> None:
        """Groups too old for every step to come: ended before the samplers pause, which only saves work."""
        for group in self.buffer.expired(version):
            question = self.buffer.get(group).question_id
            if task := self._rolls.get(group):
                await _cancel_all([task])
                await self.fleet.abort(question)
            if group in self.buffer:  # it may have ended by itself meanwhile
                self._cancel(group, "expired")

    async def checkpoint(self) -> None:
        """Between two steps: the learner's state, this object's, and the payloads of the finished groups."""
        finished = [self._results[g.id] for g in self.buffer.groups(GroupState.FINISHED)]
        save = self.saver.save(self.state(), finished)
        await self._within(self.settings.checkpoint_timeout_s, "the checkpoint", save)
        self._saved_step = self.step
        self.watch.progress()

    def state(self) -> ControllerState:
        """What continues this run elsewhere, together with the finished groups. Raise `Misuse` within a step."""
        buffer, cursor = self.buffer.snapshot(), self.cursor.snapshot()
        return ControllerState(self.step, self.version, buffer, cursor, dict(self.totals), self.evaluation.state)


async def _cancel_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_TASKS_S)


def _limits(s: GrpoSettings) -> FleetLimits:
    return FleetLimits(
        episodes_per_sampler=s.episodes_per_sampler,
        episode_retries=s.episode_retries,
        episode_timeout_s=s.episode_timeout_s,
        update_timeout_s=s.publish_timeout_s,
        ready_timeout_s=s.ready_timeout_s,
        probe_every_s=s.probe_every_s,
        probe_timeout_s=s.probe_timeout_s,
    )
