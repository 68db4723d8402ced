"""The actors of an evaluation, started and ended together."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from actors.reward.actor import RemoteScorer, start_evaluators
from actors.sampler.actor import start_sampler
from actors.search.pool import Searchers
from cluster.runtime import Cluster
from workflows.evaluate.play import ArmSampler

if TYPE_CHECKING:
    from workflows.evaluate.run import Plan

CLOSE_S = 30.0  # for an engine to stop; after that its process is killed


class Cast:
    """Searchers, evaluators, samplers that start with `model`."""

    def __init__(self, plan: Plan, cluster: Cluster, model: str) -> None:
        e = plan.evaluate
        cpus = plan.search.pool.reserved_cpus + plan.reward.evaluators * plan.reward.evaluator_cpus
        needed = {"CPU": cpus + e.samplers * e.sampler_cpus}
        self._cluster = cluster
        cluster.require(needed | ({"GPU": e.samplers * e.sampler_gpus} if e.sampler_gpus else {}), "the evaluation")
        self._searchers = Searchers(plan.search, plan.images)
        self._evaluators = start_evaluators(plan.reward, plan.preset)
        self.toolbox = toolbox = self._searchers.toolbox
        scorer = RemoteScorer(self._evaluators, plan.reward.timeout)

        def start() -> Any:
            return start_sampler(
                model, plan.engine, plan.preset, plan.limits, toolbox, scorer, plan.images,
                num_cpus=e.sampler_cpus, num_gpus=e.sampler_gpus,
            )  # fmt: skip

        retry_s = e.ready_timeout_s + e.update_timeout_s
        self.samplers = [ArmSampler(f"sampler-{i}", start, retry_s) for i in range(e.samplers)]

    async def ready(self, timeout_s: float) -> None:
        """Raise what the construction of any actor raised, `UserError` when one did not get its cores in time."""
        async with self._cluster.starting("the evaluation", timeout_s):
            await asyncio.gather(
                *(sampler.ready() for sampler in self.samplers),
                self._searchers.ready(),
            )

    async def close(self) -> None:
        """End every process that was started here, however it is doing."""
        with suppress(TimeoutError):  # what is left then ends with its handles
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(sampler.close() for sampler in self.samplers), return_exceptions=True)
        await self._searchers.close()
        for actor in self._evaluators:
            ray.kill(actor)
