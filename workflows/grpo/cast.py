"""The actors of a GRPO run: who they are, what they need, how they start and end together."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from actors.agent.episode import Limits
from actors.agent.seams import ImageStore
from actors.learner.actor import LearnerRanks
from actors.learner.settings import LearnerSettings
from actors.model.settings import PictureSettings
from actors.reward.actor import RemoteScorer, check_reward, start_evaluators
from actors.reward.settings import RewardSettings
from actors.sampler.actor import start_sampler
from actors.sampler.settings import EngineSettings
from actors.search.actor import check_providers
from actors.search.pool import Searchers
from actors.search.settings import SearchSettings
from actors.weights.nccl import Peer
from actors.weights.transport import default_root
from cluster.errors import UserError
from cluster.runtime import Cluster, RuntimeSettings, joins
from cluster.shared_folder import SharedFolder
from cluster.storage import Folder
from cluster.trackers import Tracking
from workflows.grpo.ray_ports import RayLearner, RayRecruiter, RaySampler, RayTools
from workflows.grpo.settings import GrpoSettings

CLOSE_S = 30.0  # for an engine to stop; after that its process is killed
RECEIVER_S = 1.0  # until it is asked again whether a sampler can receive weights


@dataclass(frozen=True)
class Plan:
    """Everything that one GRPO run needs to know, from wherever it was configured."""

    name: str
    seed: int
    folder: Folder  # where its results go
    model: str  # model folder it starts from, local or s3://
    questions: Folder  # Parquet shards
    images: ImageStore  # where their pictures go; every process of the run can reach it
    preset: str  # of actors.agent.prompts.PRESETS
    limits: Limits
    engine: EngineSettings
    search: SearchSettings
    reward: RewardSettings
    learner: LearnerSettings
    grpo: GrpoSettings
    cluster: RuntimeSettings
    resolved: Mapping[str, Any]  # the configuration as it was given, for the manifest
    tracking: Tracking | None = None  # who shows its curves
    pictures: PictureSettings = field(default_factory=PictureSettings)  # bounds of the model's image processor
    policy: str | None = None  # dotted path of a `PolicyFactory` that wraps the engine of every episode

    def check(self) -> None:
        """Raise `UserError` for parts that do not fit each other, or cannot be found."""
        check_providers(self.search)
        check_reward(self.reward)
        if self.limits.max_total_tokens > self.engine.max_model_len:
            raise UserError(
                f"an episode may have {self.limits.max_total_tokens} tokens,"
                f" but the engine's max_model_len is {self.engine.max_model_len}."
            )
        whole_gpus = max(1.0, self.grpo.sampler_gpus)
        if self.grpo.sampler_gpus and whole_gpus != self.engine.tensor_parallel_size:
            raise UserError(
                f"engine.tensor_parallel_size is {self.engine.tensor_parallel_size} and grpo.sampler_gpus is"
                f" {self.grpo.sampler_gpus:g}: a sampler's GPUs are those that share its engine."
            )
        if (self.learner.publish.transport == "nccl") != self.engine.nccl_updates:
            raise UserError("learner.publish.transport=nccl and engine.nccl_updates=true go together: set both.")
        if self.learner.publish.transport == "nccl" and not (self.grpo.sampler_gpus and self.grpo.learner_gpus):
            raise UserError("learner.publish.transport=nccl needs grpo.learner_gpus and grpo.sampler_gpus.")
        if self.learner.publish.transport == "nccl" and self.grpo.evaluation.every and self.grpo.evaluation.best:
            raise UserError(
                "learner.publish.transport=nccl leaves no copy of a version that grpo.evaluation.best could keep: set"
                " grpo.evaluation.best=false."
            )
        if self.limits.max_total_tokens > self.learner.max_length:
            raise UserError(
                f"an episode may have {self.limits.max_total_tokens} tokens,"
                f" but the learner's max_length is {self.learner.max_length}."
            )

    @property
    def start_model(self) -> str:
        """What samplers and learner open."""
        return self.pictures.on(self.model)

    @property
    def learner_settings(self) -> LearnerSettings:
        """The learner divides its logits by the temperature that the samplers sample at, and learns from flat groups
        where they are not filtered."""
        objective = replace(self.learner.objective, temperature=self.grpo.temperature)
        return replace(self.learner, objective=objective, flat_groups=not self.grpo.filter_zero_variance)

    @property
    def episode_s(self) -> float:
        """Seconds within which a sampler has ended an episode and has its reward or none, whatever hangs."""
        return self.limits.longest_s + self.reward.timeout

    @property
    def resources(self) -> dict[str, float]:
        """What Ray must have for all actors together."""
        g = self.grpo
        cpus = g.samplers * g.sampler_cpus + g.ranks * g.learner_cpus
        cpus += self.search.pool.reserved_cpus + self.reward.evaluators * self.reward.evaluator_cpus
        gpus = g.samplers * g.sampler_gpus + g.ranks * g.learner_gpus
        return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def weights_root(plan: Plan) -> Path:
    """Where weights pass from learner to samplers: the same for each part of a run, and no other run's."""
    which = hashlib.sha256(plan.folder.address.encode()).hexdigest()[:8]  # two runs may have one name
    return default_root(f"{plan.name}-{which}")


class Cast:
    """All actors of a run, created at once; `ready` returns when every one of them can work."""

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self._plan, self._cluster = plan, cluster
        cluster.require(plan.resources, "the GRPO run")
        g, images = plan.grpo, plan.images
        elsewhere = plan.folder.is_local and joins(plan.cluster)  # a cluster that was started here is this machine
        self._shared = SharedFolder(plan.folder, "run.storage") if elsewhere else None
        look = None if self._shared is None else self._shared.seen_by
        self._weights_root = weights_root(plan)
        self._searchers = Searchers(plan.search, images)
        self._evaluators = start_evaluators(plan.reward, plan.preset)
        self.toolbox = self._searchers.toolbox
        scorer = RemoteScorer(self._evaluators, plan.reward.timeout)
        self.ranks = LearnerRanks.start(
            plan.start_model,
            plan.learner_settings,
            images,
            str(self._weights_root),
            world=g.ranks,
            cpus=g.learner_cpus,
            gpus=g.learner_gpus,
        )

        def sampler() -> Any:
            return start_sampler(
                plan.start_model,
                plan.engine,
                plan.preset,
                plan.limits,
                self.toolbox,
                scorer,
                images,
                num_cpus=g.sampler_cpus,
                num_gpus=g.sampler_gpus,
                labels=g.sampler_labels,
            )

        self.samplers: list[RaySampler] = []
        numbers = itertools.count()

        def another() -> RaySampler:
            self.samplers.append(RaySampler(f"sampler-{next(numbers)}", sampler, plan.policy, look))
            return self.samplers[-1]

        for _ in range(g.samplers):
            another()
        direct = plan.learner.publish.transport == "nccl"
        self.learner = RayLearner(self.ranks, self._receivers if direct else None)
        self.recruiter = RayRecruiter(another, g.ready_timeout_s, self.samplers.remove)
        self.tools = RayTools(self._searchers)

    async def ready(self, timeout_s: float) -> None:
        """Raise what the construction of any actor raised, `UserError` when one did not get its cores in time, or its
        node does not see the run's folder."""
        async with self._cluster.starting("the GRPO run", timeout_s):
            await asyncio.gather(
                self._see_the_folder(self.ranks.actors),  # before they load anything
                self.ranks.ready(),
                *(sampler.ready() for sampler in self.samplers),
                self._searchers.ready(),
            )
            await self._see_the_folder(await self._searchers.members())

    async def _see_the_folder(self, actors: Iterable[Any]) -> None:
        if self._shared is not None:
            await asyncio.gather(*(self._shared.seen_by(actor) for actor in actors))

    async def _receivers(self) -> list[Peer]:
        """The samplers that are well, as soon as there is one. Those that are not, or join later, get the next version.

        One on offer that Ray has not placed would not answer, and is not asked.
        """

        async def well(sampler: RaySampler) -> bool:
            async with asyncio.timeout(self._plan.grpo.probe_timeout_s):
                return await sampler.healthy()

        gpus = self._plan.engine.tensor_parallel_size
        while True:
            asked = [sampler for sampler in self.samplers if sampler.started]
            answers = await asyncio.gather(*(well(sampler) for sampler in asked), return_exceptions=True)
            if found := [sampler for sampler, answer in zip(asked, answers, strict=True) if answer is True]:
                return [sampler.peer(gpus) for sampler in found]
            await asyncio.sleep(RECEIVER_S)  # all are being revived; the publish has a deadline

    async def close(self) -> None:
        """End every process that was started here, however it is doing."""
        ends = [*(sampler.close() for sampler in self.samplers), self.ranks.close()]
        with suppress(TimeoutError):  # what is left then ends with its handles, when this object goes
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*ends, return_exceptions=True)
        await self._searchers.close()
        for actor in self._evaluators:
            ray.kill(actor)
        shutil.rmtree(self._weights_root, ignore_errors=True)
        if self._shared is not None:
            self._shared.close()
