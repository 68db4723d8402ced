"""Episodes of an arm on samplers that all arms share.

Weights are swapped by publishing, as in training; an engine that dies is replaced once per incident and given the
arm's weights. Always true: a question gets exactly one trajectory per sample, and what the infrastructure spoilt is
played again before it counts as failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, Failure, Question, Trajectory
from actors.weights.manifest import WeightEntry, WeightTicket, digest_of, make_ticket, tensor_bytes, tensor_slices
from workflows.grpo.ports import SamplerGone
from workflows.grpo.ray_ports import RaySampler

Told = Callable[[], None]  # an episode has ended


def ticket_of(folder: Path, version: int) -> WeightTicket:
    """A ticket for a model folder as it lies there: an exported model is published without being copied.

    Raise `TornPublish` for a folder whose files are damaged.
    """
    slices = tensor_slices(folder)
    entries = [
        WeightEntry(name, slices[name].dtype, slices[name].shape, digest_of(data))
        for name, data in tensor_bytes(slices)
    ]
    return make_ticket(version, folder, entries)


class ArmSampler(RaySampler):
    """A sampler actor that plays episodes under an arm's policy and weights."""

    def __init__(self, name: str, start: Callable[[], Any], retry_s: float) -> None:
        super().__init__(name, start)
        self._retry_s = retry_s  # for a replacement to start and take the weights
        self._weights: WeightTicket | None = None  # None: those that it starts with
        self._incident = asyncio.Lock()
        self._life = 0

    async def set_weights(self, ticket: WeightTicket) -> None:
        """Run these weights from now on, also in a replacement."""
        self._weights = ticket
        await self.update(ticket)

    async def play(self, question: Question, sample: int, sampling: Sampling, policy: str | None) -> Trajectory:
        """Raise `SamplerGone` when the process died; it is replaced by then."""
        life = self._life
        _, trajectory = self._actor.run.remote(question, sample, sampling, policy)
        try:
            played = await self._ask(trajectory)
            if played.failure is not Failure.INFRA or await self.healthy():
                return played
        except SamplerGone:
            await self._replace(life)
            raise
        await self._replace(life)
        return played

    async def _replace(self, life: int) -> None:
        """All episodes of a dead sampler come here; the first one replaces it."""
        async with self._incident:
            if self._life != life:
                return
            async with asyncio.timeout(self._retry_s):
                await self.revive()
                if self._weights is not None:
                    await self.update(self._weights)
            self._life += 1


@dataclass(frozen=True)
class Played:
    """An episode and how many times it was played."""

    question: Question
    trajectory: Trajectory
    attempts: int


async def play_arm(
    samplers: Sequence[ArmSampler],
    questions: Sequence[Question],
    policy: str | None,
    sampling: Sampling,
    *,
    samples: int,
    concurrency: int,
    retries: int,
    timeout_s: float,
    told: Told,
) -> list[Played]:
    """`samples` episodes of every question, in order; `concurrency` at a time on each sampler."""
    places = [asyncio.Semaphore(concurrency) for _ in samplers]

    async def attempt(i: int, question: Question, sample: int) -> Trajectory:
        which = i % len(samplers)
        async with places[which]:
            try:
                async with asyncio.timeout(timeout_s):
                    return await samplers[which].play(question, sample, sampling, policy)
            except (SamplerGone, TimeoutError) as error:
                problem = str(error) or f"no end within {timeout_s:.0f} s"
                return Trajectory(question.id, sample, (), (), Ending.FAILED, Failure.INFRA, problem=problem)

    async def one(i: int, question: Question, sample: int) -> Played:
        attempts = 0
        while True:
            trajectory = await attempt(i + attempts, question, sample)  # another sampler, where there is one
            attempts += 1
            if trajectory.failure is not Failure.INFRA or attempts > retries:
                break
        told()
        return Played(question, trajectory, attempts)

    pairs = [(question, sample) for sample in range(samples) for question in questions]
    return list(await asyncio.gather(*(one(i, question, sample) for i, (question, sample) in enumerate(pairs))))
