"""From GPU to GPU: those that are well are connected before each publish. Actors are stood in for; NCCL is not run."""

from types import SimpleNamespace
from typing import Any

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


def sampler(name, answer):
    async def healthy():
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(healthy=healthy, peer=lambda gpus: (name, gpus))


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
    cast: Any = object.__new__(Cast)
    cast._plan = SimpleNamespace(
        grpo=SimpleNamespace(probe_timeout_s=5.0), engine=SimpleNamespace(tensor_parallel_size=2)
    )
    cast.samplers = [sampler("well", True), sampler("ill", False), sampler("dead", SamplerGone("killed"))]
    assert await cast._receivers() == [("well", 2)]
