"""From GPU to GPU: those that are well are connected before each publish. Actors are stood in for; NCCL is not run."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors.sampler.actor import RolloutSampler
from actors.weights.manifest import WeightsMissed, make_ticket
from workflows.grpo.cast import Cast
from workflows.grpo.ports import SamplerGone
from workflows.grpo.ray_ports import RayLearner


class Ranks:
    def __init__(self):
        self.calls = []

    async def connect(self, peers):
        self.calls.append(("connect", tuple(peers)))

    async def publish(self, version):
        self.calls.append(("publish", version))
        return version


def sampler(name, *answers, started=True):
    """Its answers in order, the last one for ever; without any it never answers."""
    left = list(answers)

    async def healthy():
        if not left:
            await asyncio.Event().wait()
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(healthy=healthy, peer=lambda gpus: (name, gpus), started=started)


def cast_of(*samplers):
    cast: Any = object.__new__(Cast)
    cast._plan = SimpleNamespace(
        grpo=SimpleNamespace(probe_timeout_s=5.0), engine=SimpleNamespace(tensor_parallel_size=2)
    )
    cast.samplers = list(samplers)
    return cast


async def test_the_samplers_of_the_moment_are_connected_before_each_publish():
    ranks, there = Ranks(), ["a", "b"]

    async def receivers():
        return list(there)

    learner = RayLearner(ranks, receivers)
    await learner.publish(1)
    there.remove("a")
    await learner.publish(2)
    assert ranks.calls == [("connect", ("a", "b")), ("publish", 1), ("connect", ("b",)), ("publish", 2)]


async def test_any_other_way_connects_nobody():
    ranks = Ranks()
    await RayLearner(ranks).publish(1)
    assert ranks.calls == [("publish", 1)]


async def test_only_samplers_that_are_well_take_part():
    cast = cast_of(sampler("well", True), sampler("ill", False), sampler("dead", SamplerGone("killed")))
    assert await cast._receivers() == [("well", 2)]


async def test_a_sampler_on_offer_that_has_no_place_yet_is_not_waited_for():
    cast = cast_of(sampler("well", True), sampler("on offer", started=False))
    async with asyncio.timeout(1):
        assert await cast._receivers() == [("well", 2)]


async def test_where_all_are_being_revived_the_first_that_is_back_gets_the_weights(monkeypatch):
    monkeypatch.setattr("workflows.grpo.cast.RECEIVER_S", 0.01)
    cast = cast_of(sampler("back", SamplerGone("killed"), SamplerGone("killed"), True), sampler("ill", False))
    assert await cast._receivers() == [("back", 2)]


async def test_a_sampler_that_was_not_there_when_weights_were_sent_says_that_it_missed_them():
    late: Any = object.__new__(RolloutSampler)
    late._engine = SimpleNamespace(version=3)
    assert await late.update(make_ticket(3, "", [], "nccl")) == 3
    with pytest.raises(WeightsMissed, match="version 4 was sent before"):
        await late.update(make_ticket(4, "", [], "nccl"))
