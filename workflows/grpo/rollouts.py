"""The groups that are being played: one task each, and what becomes of them.

    begin --> INFLIGHT: its episodes over the fleet --+--> finished: kept until it is trained on
                                                      +--> filtered: all siblings scored alike
                                                      +--> cancelled: bad data, or too few siblings left

Always true: what is kept are the results of the buffer's finished and taken groups; a failure of the infrastructure is
never a reward.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question
from cluster.errors import RunBroken
from workflows.grpo.admission import Admission
from workflows.grpo.dispatch import Episode, Fleet
from workflows.grpo.ports import GroupResult
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.watch import Watch
from workflows.grpo.work_buffer import GroupId, HeldGroup, WorkBuffer

FLAT = "zero_variance"
INFRA = "infra"
DATA = "data"
BARREN_ROUNDS = 2  # times all slots: groups cancelled in a row, with none finished between, that stop the run
CANCEL_TASKS_S = 30.0  # for tasks to notice that they were cancelled


class RunFailed(RunBroken):
    """The run cannot go on; what it had up to its last step is in a checkpoint."""


class Rollouts:
    """Plays the groups of a buffer. `watch` is to be set before the first one begins."""

    watch: Watch

    def __init__(
        self,
        settings: GrpoSettings,
        questions: Mapping[str, Question],
        buffer: WorkBuffer,
        cursor: PromptsCursor,
        fleet: Fleet,
        admission: Admission,
        totals: Counter[str],
        results: Iterable[GroupResult],
        changed: Callable[[], None],
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`results`: of groups that were finished before; `changed` is told of every change, `ended` of every task."""
        self._settings, self._questions = settings, questions
        self._buffer, self._cursor, self._fleet, self._admission = buffer, cursor, fleet, admission
        self._totals, self._changed, self._ended = totals, changed, ended
        self.results = {result.id: result for result in results}
        self.sampled: list[GroupResult] = []  # finished since the last step, filtered ones too; without payloads
        self._tasks: dict[GroupId, asyncio.Task[None]] = {}
        self._barren = 0  # groups that the infrastructure spoiled since one was finished
        self._flat = 0  # groups filtered since the last step

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """Of the groups under way, for whoever ends the run."""
        return list(self._tasks.values())

    def begin(self, group: GroupId) -> None:
        """Play a group that waits in the buffer."""
        self._buffer.start(group)
        task = asyncio.create_task(self._roll(group), name=f"group {group}")
        self._tasks[group] = task
        self._admission.begun(group)
        task.add_done_callback(lambda _: self._rolled(group))
        task.add_done_callback(self._ended)

    async def end(self, group: GroupId, reason: str) -> None:
        """Cancel a group, wherever it is, unless it has ended, or ends by itself meanwhile."""
        if task := self._tasks.get(group):
            question = self._buffer.get(group).question_id
            await cancel_all([task])
            await self._fleet.abort(question)
        if group in self._buffer:
            self._cancel(group, reason)

    def trained(self, batch: Sequence[GroupResult]) -> None:
        """A step is over: its groups have been released."""
        for group in batch:
            del self.results[group.id]
        self._flat, self.sampled = 0, []

    def forget_ended(self) -> None:
        """Drop the payloads of groups that the buffer found too old."""
        for group in [g for g in self.results if g not in self._buffer]:
            self._totals["tokens/wasted_by_staleness"] += self.results.pop(group).tokens
            self._changed()

    # -- one group --

    def _rolled(self, group: GroupId) -> None:
        """However it ended."""
        del self._tasks[group]
        self._admission.over(group)
        self._fleet.end_group(group)

    async def _roll(self, group: GroupId) -> None:
        held = self._buffer.get(group)
        question = self._questions[held.question_id]
        s = self._settings
        sampling = Sampling(temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens)
        try:
            async with asyncio.TaskGroup() as siblings:
                tasks = [siblings.create_task(self._episode(question, i, sampling, group)) for i in range(s.group_size)]
        except ExceptionGroup as errors:  # NoSampler or BudgetSpent: the first says why the run ends
            raise errors.exceptions[0] from None
        self._collect(held, question, [task.result() for task in tasks])

    async def _episode(self, question: Question, index: int, sampling: Sampling, group: GroupId) -> Episode:
        episode = await self._fleet.episode(question, index, sampling, (int(group), index), group)
        self._admission.ended(group, episode.summary)
        self._totals["tokens/wasted_by_failures"] += episode.wasted_tokens
        self._totals["episodes/failed_attempts"] += len(episode.failures)
        if episode.failures:
            self.watch.last_failure = episode.failures[-1]
        if episode.summary is not None:
            self._totals["tokens/sampled"] += episode.summary.sampled_tokens
            self._totals["episodes/finished"] += 1
            self.watch.progress()
        if self._admission.hold:
            self._changed()
        return episode

    def _collect(self, held: HeldGroup, question: Question, episodes: Sequence[Episode]) -> None:
        """Finish, filter or cancel a group whose episodes have all ended."""
        s, group, result = self._settings, held.id, _result(held, question, episodes)
        self._totals["episodes/masked"] += result.masked
        if any(summary.failure is Failure.DATA for summary in result.summaries):
            self._cancel(group, DATA, result.tokens)
        elif len(result.summaries) < s.min_siblings:
            self._cancel(group, INFRA, result.tokens)
            if not self._cursor.give_back(question.id, s.question_retries):
                self._totals["questions/given_up"] += 1
            self._barren += 1
            if self._barren >= BARREN_ROUNDS * self._buffer.slots:
                raise RunFailed(f"{self._barren} groups failed in a row, the last one so: {self.watch.last_failure}")
        else:
            self._barren = 0
            self._buffer.finish(group, result.oldest_version)
            self.sampled.append(replace(result, payloads=()))
            enough = self._flat >= s.refill_limit * s.groups_per_step
            if s.filter_zero_variance and result.flat and not enough:
                self._buffer.filter(group, FLAT)
                self._flat += 1
                self._totals["tokens/wasted_by_filter"] += result.tokens
            else:
                self.results[group] = result
        self._changed()

    def _cancel(self, group: GroupId, reason: str, tokens: int = 0) -> None:
        result = self.results.pop(group, None)
        self._totals["tokens/wasted_by_cancelling"] += result.tokens if result else tokens
        self._buffer.cancel(group, reason)
        self._changed()


async def cancel_all(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel, and wait for their ends for a bounded time."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_TASKS_S)


def _result(held: HeldGroup, question: Question, episodes: Sequence[Episode]) -> GroupResult:
    valid = [(e.summary, e.payload) for e in episodes if e.summary is not None]
    return GroupResult(
        id=held.id,
        question=question,
        admitted_at=held.admitted_at,
        summaries=tuple(s for s, _ in valid),
        payloads=tuple(p for _, p in valid),
        masked=len(episodes) - len(valid),
    )
