"""The controller's ports on Ray actors: samplers, the learner's ranks, and checkpoints of both.

Payloads are references to trajectories that lie in the object store of the controller's node, so that neither a sampler
that dies nor a node that goes takes finished work along; the learner's processes fetch them from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.agent.seams import Sampling
from actors.agent.trajectory import Question, Summary, Trajectory
from actors.learner.actor import LearnerRanks
from actors.search.build import endpoint_name
from actors.search.load import EndpointLoad, LoadSample, merged
from actors.search.pool import ANSWER_S, Searchers
from actors.search.quota.actor import PREFIX
from actors.search.settings import SearchSettings
from actors.weights.nccl import Peer
from cluster.errors import RunBroken
from cluster.runtime import NAMESPACE
from cluster.storage import Folder
from workflows.grpo.best_models import BestModels
from workflows.grpo.checkpoint import Checkpoint, CheckpointStore, SavedGroup
from workflows.grpo.ports import (
    BudgetSpent,
    ControllerState,
    GroupResult,
    LearnerGone,
    Payload,
    Sampler,
    SamplerGone,
    SamplerLoad,
    Ticket,
)
from workflows.grpo.refusals import Spending

BROKER_ANSWERS_S = 5.0
StartSampler = Callable[[], Any]  # creates the actor; returns its handle
Look = Callable[[Any], Awaitable[None]]  # at an actor


class RaySampler:
    """One RolloutSampler actor. When it has died, `revive` makes another in its place."""

    def __init__(self, name: str, start: StartSampler, policy: str | None = None, look: Look | None = None) -> None:
        """`policy` names what wraps the engine of every episode, as `RolloutSampler.run` has it; `look` raises when the
        actor has come to a node that it cannot work on."""
        self.name = name
        self._start, self._policy, self._look = start, policy, look
        self._actor = start()
        self.started = False  # Ray has placed it, and its engine runs

    async def ready(self) -> Mapping[str, Any]:
        """Facts about the engine, once it has started. Raise what its construction raised, and what `look` raises."""
        if self._look is not None:
            await self._ask(self._look(self._actor))
        facts = await self._ask(self._actor.ready.remote())
        self.started = True
        return facts

    async def run(self, question: Question, sample_index: int, sampling: Sampling) -> tuple[Summary, Payload]:
        """One episode: the summary, and a reference to the trajectory.

        Raise `BudgetSpent` when a tool was refused, and Ray's `ObjectLostError` when the sampler's node went before
        the trajectory was here.
        """
        reference, trajectory = self._actor.run.remote(question, sample_index, sampling, self._policy)
        summary: Summary = await self._ask(reference)
        if summary.extra.get("refused"):
            raise BudgetSpent(summary.extra["refused"])
        # What an actor returns lies on its node, and nothing makes it anew; a copy of it may be evicted. What is put
        # here stays, or is spilled. In a thread, as a full store lets who puts wait.
        return summary, await asyncio.to_thread(ray.put, await self._ask(trajectory))

    async def update(self, ticket: Ticket) -> None:
        await self._ask(self._actor.update.remote(ticket))

    async def cancel(self, question_id: str, sample_index: int | None = None) -> None:
        await self._ask(self._actor.cancel.remote(question_id, sample_index))

    async def healthy(self) -> bool:
        return bool(await self._ask(self._actor.healthy.remote()))

    async def load(self) -> SamplerLoad:
        stats = await self._ask(self._actor.stats.remote())
        return SamplerLoad(
            in_tools=max(0, stats["episodes"] - stats["running"] - stats["waiting"]),
            waiting=stats["waiting"],
            kv_used=stats.get("kv_used", 0.0),
            preempted=stats.get("preempted", 0),
            sampled_tokens=stats["sampled_tokens"],
            prefix_hits=stats.get("prefix_hits", 0),
            prefix_asked=stats.get("prefix_asked", 0),
        )

    def peer(self, gpus: int) -> Peer:
        """As the learner addresses it from GPU to GPU; its engine has so many."""
        return Peer(self._actor, gpus)

    async def placed(self) -> None:
        """Returns when Ray has found a place for it and its process has begun. Raise `SamplerGone` if it died there."""
        await self._ask(self._actor.stats.remote())

    def kill(self) -> None:
        """End its process at once, or its wait for a place."""
        ray.kill(self._actor)

    async def revive(self) -> None:
        """A new process with the model's first weights; the old one, hung or dead, is killed."""
        self.started = False
        ray.kill(self._actor)
        self._actor = self._start()
        await self.ready()

    async def close(self) -> None:
        """Stop the engine's processes, then the actor, also when that fails or takes too long."""
        try:
            await self._ask(self._actor.close.remote())
        except SamplerGone:
            return  # dead already
        finally:
            ray.kill(self._actor)

    async def _ask(self, reference: Any) -> Any:
        try:
            return await reference
        except RayTaskError as error:  # the method raised: its own exception says more than Ray's
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayActorError as error:
            reason = str(error).strip().splitlines()
            raise SamplerGone(reason[0] if reason else type(error).__name__) from error


class RayRecruiter:
    """`ports.Recruiter`: actors that Ray places when there is room; while there is none, they wait as one more demand
    on the cluster, which an autoscaler answers with a node."""

    def __init__(
        self, make: Callable[[], RaySampler], ready_timeout_s: float, gone: Callable[[RaySampler], None]
    ) -> None:
        """`make` creates the next sampler; `gone` is told of each that has been ended."""
        self._make, self._ready_timeout_s, self._gone = make, ready_timeout_s, gone

    async def recruit(self) -> Sampler:
        """As the port's; raise what its construction raised, `TimeoutError` when it was placed and did not start."""
        sampler = self._make()
        try:
            await sampler.placed()
            async with asyncio.timeout(self._ready_timeout_s):
                await sampler.ready()
        except BaseException:
            sampler.kill()
            self._gone(sampler)
            raise
        return sampler

    async def dismiss(self, sampler: Sampler) -> None:
        """Stop its engine's processes, where they can still be reached, then the actor."""
        assert isinstance(sampler, RaySampler)
        self._gone(sampler)
        await sampler.close()


class RayTools:
    """`ports.Tools` on the search workers of a run."""

    def __init__(self, searchers: Searchers) -> None:
        self._searchers = searchers
        self._told: dict[Any, LoadSample] = {}  # by worker, what it said last

    async def load(self) -> LoadSample:
        """Of all workers; raise what asking for the workers raises.

        Of one that is silent only what it has served stands: without it, its next answer would look like a burst.
        """
        workers = await self._searchers.members()
        samples = await asyncio.gather(*(self._of(worker) for worker in workers))
        self._told = dict(zip(workers, samples, strict=True))
        return merged(samples)

    async def _of(self, worker: Any) -> LoadSample:
        try:
            return await asyncio.wait_for(worker.load.remote(), ANSWER_S)
        except RayError:  # Ray starts it again, and then it counts anew
            return LoadSample()
        except TimeoutError:
            last = self._told.get(worker, LoadSample())
            return LoadSample(tuple(EndpointLoad(endpoint.name, served=endpoint.served) for endpoint in last.endpoints))


class RayLearner:
    """`ports.Learner` on all ranks."""

    def __init__(self, ranks: LearnerRanks, receivers: Callable[[], Awaitable[Sequence[Peer]]] | None = None) -> None:
        """`receivers`: the samplers that take part in a publish from GPU to GPU; None for any other way."""
        self._ranks, self._receivers = ranks, receivers

    async def train(self, groups: Sequence[GroupResult], version: int) -> Mapping[str, float]:
        with _deaths_told():
            stats = await self._ranks.train([group.payloads for group in groups], version)
        return stats.numbers()

    async def publish(self, version: int) -> Ticket:
        with _deaths_told():
            if self._receivers is not None:
                await self._ranks.connect(await self._receivers())
            return await self._ranks.publish(version)

    async def load(self, address: str, timeout_s: float) -> None:
        """Go on from a checkpoint's learner. Raise `UserError` for what is not one of this run's."""
        await _in_time("loading the learner's checkpoint", timeout_s, self._ranks.load(address))

    async def export(self, address: str, timeout_s: float) -> None:
        """Write a model folder."""
        await _in_time("exporting the model", timeout_s, self._ranks.export(address))


class RaySaver:
    """`ports.Saver`: fetches the finished groups' trajectories and writes everything to the run's storage."""

    def __init__(self, store: CheckpointStore, ranks: LearnerRanks, best: BestModels) -> None:
        self._store, self._ranks, self._best = store, ranks, best

    async def save(self, state: ControllerState, finished: Sequence[GroupResult]) -> None:
        groups = [
            SavedGroup(
                id=group.id,
                trajectories=tuple(await fetch(group.payloads)),
                masked=group.masked,
            )
            for group in finished
        ]
        await self._store.write(state, groups, self._save_learner)
        await self._best.checkpointed(state.evaluation.best)

    async def _save_learner(self, folder: Folder) -> None:
        with _deaths_told():
            await self._ranks.save(folder.address)


async def _in_time(what: str, timeout_s: float, work: Awaitable[None]) -> None:
    """Raise `LearnerGone` for a rank that died, `RunBroken` when all together take longer."""
    try:
        with _deaths_told():
            async with asyncio.timeout(timeout_s):
                await work
    except TimeoutError:
        raise RunBroken(f"{what} took longer than grpo.checkpoint_timeout_s, {timeout_s:.0f} s") from None


@contextmanager
def _deaths_told() -> Iterator[None]:
    """Raise `LearnerGone` for a rank that died; what a rank raised stays what it is."""
    try:
        yield
    except RayTaskError:
        raise
    except RayActorError as error:
        raise LearnerGone(
            "a learner process died; the run goes on from its newest checkpoint when started again"
        ) from error


async def fetch(payloads: Sequence[Payload]) -> list[Trajectory]:
    """The trajectories themselves."""
    return list(await asyncio.gather(*payloads))


def restored(checkpoint: Checkpoint, questions: Mapping[str, Question]) -> list[GroupResult]:
    """The finished groups of a checkpoint, payloads in Ray's object store again; questions that are gone left out."""
    held = {group.id: group for group in checkpoint.state.buffer.groups}
    groups: list[GroupResult] = []
    for saved in checkpoint.groups:
        group = held.get(saved.id)
        if group is None or group.question_id not in questions:
            continue
        groups.append(
            GroupResult(
                id=saved.id,
                question=questions[group.question_id],
                admitted_at=group.admitted_at,
                summaries=tuple(Summary.of(t) for t in saved.trajectories),
                payloads=tuple(ray.put(t) for t in saved.trajectories),
                masked=saved.masked,
            )
        )
    return groups


async def spending(search: SearchSettings) -> dict[str, Spending]:
    """What the quota brokers count as spent, by endpoint; those that do not answer are left out."""
    found: dict[str, Spending] = {}
    for endpoint in search.endpoints():
        if endpoint.quota is not None:
            name = endpoint_name(endpoint)
            try:
                broker = ray.get_actor(PREFIX + name, namespace=NAMESPACE)
                standing = await asyncio.wait_for(broker.standing.remote(), BROKER_ANSWERS_S)
            except (ValueError, RayError, TimeoutError):  # no such actor, or none that answers: only an estimate less
                continue
            found[name] = standing.spent
    return found
