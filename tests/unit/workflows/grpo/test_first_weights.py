"""How a sampler comes to its first weights: beside the run, without holding it up; and what it does without them."""

import asyncio
from dataclasses import replace

import pytest

from actors.weights.manifest import WeightsMissed
from tests.unit.workflows.grpo.bad_world import SMALL, Luck, OneSampler, World, controller, play
from tests.unit.workflows.grpo.test_membership import GROWING, give, run_with

load = OneSampler.update


def test_the_first_loads_run_at_once(monkeypatch):
    async def slow(self, ticket):
        await asyncio.sleep(20 if self.version < 0 else 0)
        await load(self, ticket)

    monkeypatch.setattr(OneSampler, "update", slow)
    end, _ = play(controller(World(0, Luck(flat=0.0)), replace(SMALL, samplers=4, ready_timeout_s=30)).run)
    assert end.complete


def test_one_that_hangs_while_it_loads_holds_up_no_publish(monkeypatch):
    async def update(self, ticket):
        if self.name == "extra-0":
            await asyncio.Event().wait()
        await load(self, ticket)

    monkeypatch.setattr(OneSampler, "update", update)
    world = World(1, Luck(flat=0.0))
    _, c, room = run_with(world, replace(GROWING, steps=60), [(3, give(2))])
    assert max(m["publish_lag_s"] for m in world.metrics) < 2
    assert room.dismissed == ["extra-0"]
    assert [place.name for place in c.fleet.places] == ["s0", "extra-1"]


def test_weights_that_are_gone_before_a_joiner_has_loaded_them_are_no_failure_of_its(monkeypatch):
    first = []

    async def update(self, ticket):
        if self.name == "extra-0" and not first:
            first.append(ticket)
            await asyncio.sleep(60)
            first.append(self.world.published)
            raise RuntimeError(f"version {ticket} is gone")
        await load(self, ticket)

    monkeypatch.setattr(OneSampler, "update", update)
    world = World(1, Luck(flat=0.0))
    _, c, room = run_with(world, replace(GROWING, steps=30), [(3, give(1))])
    assert first[1] > first[0] + 1
    assert room.dismissed == []
    assert [place.name for place in c.fleet.places] == ["s0", "extra-0"]
    assert world.metrics[-1]["samplers/live"] == 2


# -- from GPU to GPU: who is not there when weights are sent gets the next ones --


@pytest.fixture
def direct(monkeypatch):
    """The samplers that receive, and the names of those that were revived."""
    there, revived = [], []
    publish, revive = World.publish, OneSampler.revive

    async def send(self, version):
        for sampler in there:
            sampler.received = -1 if sampler.dead else version
        return await publish(self, version)

    async def update(self, ticket):
        if self not in there:
            self.received = -1 if self.name.startswith("extra") else 0  # those of the start take part in the first one
            there.append(self)
        if self.received != ticket:
            raise WeightsMissed(f"version {ticket} was sent before it could receive")
        await load(self, ticket)

    async def anew(self):
        self.received = -1
        revived.append(self.name)
        await revive(self)

    monkeypatch.setattr(World, "publish", send)
    monkeypatch.setattr(OneSampler, "update", update)
    monkeypatch.setattr(OneSampler, "revive", anew)
    return there, revived


def test_one_that_is_revived_waits_for_the_next_weights_and_is_not_killed_again(direct):
    world, made = World(3, Luck(flat=0.0)), []

    async def main():
        made.append(controller(world, replace(SMALL, steps=30, samplers=2, probe_every_s=0.5)))
        asyncio.get_running_loop().call_later(10, setattr, made[0].fleet.places["s0"].sampler, "dead", True)
        return await made[0].run()

    end, _ = play(main)
    assert end.complete
    assert direct[1] == ["s0"]
    assert any("sampler s0 waits for the next weights" in line for line in world.said)
    assert any("sampler s0 has the weights that it waited for" in line for line in world.said)
    assert world.metrics[-1]["samplers/live"] == 2


def test_one_that_joins_waits_for_the_next_weights_and_is_not_ended(direct):
    world = World(3, Luck(flat=0.0))
    _, c, room = run_with(world, replace(GROWING, steps=30, probe_every_s=0.5), [(8, give(1))])
    assert any("sampler extra-0 waits for the next weights" in line for line in world.said)
    assert (room.dismissed, direct[1]) == ([], [])
    assert not any(m.get("idle/sampler_fenced_s") for m in world.metrics)  # it waits for a publish
    assert [place.name for place in c.fleet.places] == ["s0", "extra-0"]
    assert world.metrics[-1]["samplers/live"] == 2


def test_one_that_dies_while_it_waits_is_replaced(direct):
    world, waits = World(3, Luck(flat=0.0)), []

    async def dies_waiting(place):
        async with asyncio.timeout(1000):
            while not place.waits:
                await asyncio.sleep(0.1)
        waits.append(place.name)
        place.sampler.dead = True

    async def main():
        c = controller(world, replace(SMALL, steps=30, samplers=2, probe_every_s=0.5))
        place = c.fleet.places["s0"]
        asyncio.get_running_loop().call_later(10, setattr, place.sampler, "dead", True)
        watch = asyncio.create_task(dies_waiting(place))
        end = await c.run()
        await watch
        return end

    end, _ = play(main)
    assert end.complete
    assert waits == ["s0"]
    assert direct[1] == ["s0", "s0"]
    assert world.metrics[-1]["samplers/live"] == 2
