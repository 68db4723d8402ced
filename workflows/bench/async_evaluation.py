"""What the last weights of every run are asked: the run's own test questions, greedily, as `mmsearch evaluate` does.

All runs are asked the same questions by tools that are as fast as they are, so that two arms can be held against each
other question by question. It is no part of a step.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.agent.trajectory import Question
from actors.model.load import local_model
from cluster import runtime
from cluster.storage import Folder
from workflows.evaluate.cast import Cast
from workflows.evaluate.play import Played, play_arm
from workflows.evaluate.rows import row_of
from workflows.evaluate.run import Plan, choose, plan_of
from workflows.grpo.questions import load_questions

ARM = "rl"  # of `mmsearch evaluate`: weights that search as they like


@dataclass(frozen=True)
class Evaluation:
    """The run's own evaluation, of other weights."""

    plan: Plan
    questions: Sequence[Question]

    @classmethod
    def of(cls, settings: Any, questions: int) -> Evaluation:
        """`questions` of the run's test questions, or all where there are fewer. Raise `UserError` for none."""
        plan = plan_of(settings)
        asked = choose(load_questions(plan.questions, plan.images).by_id, questions, plan.seed)
        return cls(dataclasses.replace(plan, evaluate=dataclasses.replace(plan.evaluate, temperature=0.0)), asked)

    @property
    def identity(self) -> list[Any]:
        """What decides the answers beside the weights, as JSON takes it."""
        ids = [question.id for question in self.questions]
        return [ids, self.plan.preset, dataclasses.asdict(self.plan.limits), dataclasses.asdict(self.plan.sampling)]

    def answers(self, model: Folder) -> dict[str, float]:
        """Exact match by question; those that the infrastructure spoilt are left out. Raise what its actors raise."""
        with runtime.connect(self.plan.cluster) as cluster:
            played = asyncio.run(self._play(cluster, self.plan.pictures.on(str(local_model(model.address)))))
        rows = [row_of(ARM, one.question, one.trajectory, one.attempts) for one in played]
        return {row.question_id: row.exact_match for row in rows if row.counts}

    async def _play(self, cluster: runtime.Cluster, model: str) -> list[Played]:
        plan, e = self.plan, self.plan.evaluate
        cast = Cast(plan, cluster, model)
        try:
            await cast.ready(e.ready_timeout_s)
            return await play_arm(
                cast.samplers,
                self.questions,
                None,
                plan.sampling,
                samples=1,
                concurrency=e.concurrency,
                retries=e.retries,
                timeout_s=plan.episode_s,
                told=lambda: None,
            )
        finally:
            await cast.close()
