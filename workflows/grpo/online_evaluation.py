"""Evaluation while training goes on: a fixed set of held-out questions, every so many versions, under one version.

    publish v -> live everywhere -> PLAY the questions, greedily, over the same fleet and seats; first in the queue
                                      |          meanwhile the learner may train on the next batch
    publish v + 1 waits  <------------+--- score -> keep the weights if they are the best -> record -> remember

Always true:
- no weights are published while an evaluation is under way, so every token that it scores is of one version; an
  episode of which that is not so (a sampler that lagged behind) is dropped and counted;
- it ends: whatever is not played by its deadline is given up and counted as failed, never as wrong;
- its state changes once, at the end: a run that is killed before then evaluates that version again.

The best weights are copied from the publication that the samplers run, not exported before the next training step:
that is exactly what was evaluated, it costs nothing unless it is the best, and it delays no step that follows, because
the learner's rank 0 does it between training and the publication that waits for this evaluation anyway.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from actors.agent.seams import Sampling
from actors.agent.trajectory import Question
from workflows.grpo.dispatch import Fleet
from workflows.grpo.evaluation_metrics import Played, evaluation_metrics, found
from workflows.grpo.evaluation_state import EvaluationState
from workflows.grpo.ports import Keeper, Recorder
from workflows.grpo.settings import GrpoSettings

FIRST = -1  # before every group in the queue for seats

Task = asyncio.Task[None]


class OnlineEvaluation:
    """The evaluations of one run, one at a time. Off when the settings say so: then nothing is ever due."""

    def __init__(
        self,
        settings: GrpoSettings,
        questions: Mapping[str, Question],
        fleet: Fleet,
        keeper: Keeper | None,
        recorder: Recorder,
        totals: Counter[str],
        state: EvaluationState,
    ) -> None:
        self.state = state
        self._run, self._settings = settings, settings.evaluation
        self._questions, self._fleet = questions, fleet
        self._keeper, self._recorder, self._totals = keeper, recorder, totals
        self._task: Task | None = None
        self.progress: Callable[[], None] = lambda: None  # told of every episode

    @property
    def stop_reason(self) -> str:
        """Why training should end early; "" while it should not."""
        patience = self._settings.patience
        if not self._settings.every or not patience or self.state.since < patience:
            return ""
        best = f"; the best is step {self.state.best.step}" if self.state.best else ""
        return f"no improvement of {self._settings.metric} in {self.state.since} evaluations{best}"

    @property
    def under_way(self) -> list[Task]:
        """The task of the evaluation that has not ended, for whoever ends the run."""
        return [self._task] if self._task and not self._task.done() else []

    def due(self, version: int) -> bool:
        """Every `every` versions, the first weights where that is wanted, and the last ones."""
        s = self._settings
        if not s.every or version <= self.state.evaluated or self.stop_reason:
            return False
        return s.at_start if version == 0 else version % s.every == 0 or version == self._run.steps

    def begin(self, version: int, ended: Callable[[Task], None]) -> None:
        """Evaluate `version`, which every live sampler now runs, if that is due. `ended` hears of what it raises."""
        if self.due(version):
            self._task = asyncio.create_task(self._evaluate(version), name=f"evaluation {version}")
            self._task.add_done_callback(ended)

    async def end(self) -> None:
        """Wait for the evaluation under way, if there is one. What it raised, `ended` was told."""
        if self._task:
            await asyncio.wait({self._task})

    async def _evaluate(self, version: int) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        played = await self._play()
        metrics = evaluation_metrics(played, version, clock() - began)
        candidate = found(metrics, len(played), version, self._settings)
        better = candidate is not None and self.state.is_better(candidate)
        if candidate and better and self._settings.best and self._keeper:
            await self._keeper.keep(candidate)
        if candidate is None:
            self._recorder.say(
                f"the evaluation of version {version} says nothing: only {metrics['eval/episodes']:.0f} of its"
                f" {len(played)} questions could be played"
            )
        await self._recorder.evaluated(version, metrics | {"eval/best": float(better)})
        self.state = self.state.after(version, candidate, self._settings.min_delta)

    async def _play(self) -> list[Played]:
        """One greedy episode of each question. Raise `NoSampler` or `BudgetSpent`, as every episode does."""
        sampling = Sampling(temperature=0.0, max_tokens=self._run.max_tokens)
        played = {question_id: Played(question, None) for question_id, question in self._questions.items()}
        late = set(played)

        async def one(number: int, question: Question) -> None:
            episode = await self._fleet.episode(question, 0, sampling, (FIRST, number))
            late.discard(question.id)
            played[question.id] = Played(question, episode.summary)
            self._totals["tokens/wasted_by_failures"] += episode.wasted_tokens
            self._totals["tokens/evaluated"] += episode.summary.sampled_tokens if episode.summary else 0
            self.progress()

        try:
            async with asyncio.timeout(self._settings.timeout_s), asyncio.TaskGroup() as episodes:
                for number, question in enumerate(self._questions.values()):
                    episodes.create_task(one(number, question))
        except TimeoutError:
            self._recorder.say(
                f"the evaluation took longer than {self._settings.timeout_s:.0f} s: {len(late)} of its"
                f" {len(played)} questions are given up"
            )
            await asyncio.gather(*(self._fleet.abort(question_id) for question_id in late))
        except ExceptionGroup as errors:  # the first says why the run ends
            raise errors.exceptions[0] from None
        return list(played.values())
