"""Siblings, quotas and KV caches as the whole controller meets them, on a clock that jumps."""

import asyncio
from dataclasses import dataclass, field, replace

from actors.agent.trajectory import Ending, Failure, Summary
from actors.search.load import EndpointLoad, LoadSample
from tests.unit.workflows.grpo.bad_world import SMALL, Luck, OneSampler, World, check_books, controller, play
from workflows.grpo.places import Places
from workflows.grpo.ports import SamplerLoad
from workflows.grpo.settings import AdmissionSettings


def run_with(world, s, **ports):
    made = []

    async def main():
        made.append(controller(world, s, **ports))
        return await made[0].run()

    end, _ = play(main)
    check_books(made[0])
    assert end.complete
    return made[0]


def test_the_siblings_of_a_group_are_played_on_one_sampler(monkeypatch):
    where = {}
    real = OneSampler.play

    async def watched(self, question, index):
        where.setdefault(question.id, []).append(self.name)
        return await real(self, question, index)

    monkeypatch.setattr(OneSampler, "play", watched)
    run_with(World(1, Luck()), replace(SMALL, samplers=3, episodes_per_sampler=8, max_staleness=2, steps=10))
    assert all(len(set(names)) == 1 for names in where.values())
    assert {name for names in where.values() for name in names} == {"s0", "s1", "s2"}


@dataclass
class LimitedTools:
    """Search workers before an endpoint that serves one request every `every_s`."""

    every_s: float
    waiting: list = field(default_factory=list)
    served: int = 0

    async def serve(self):
        while True:
            await asyncio.sleep(self.every_s)
            if self.waiting:
                self.waiting.pop(0).set_result(None)
                self.served += 1

    async def search(self):
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    async def load(self):
        return LoadSample((EndpointLoad("paid", waiting=len(self.waiting), served=self.served),))


def searching(monkeypatch, tools):
    """Samplers whose episodes are one search and nothing else."""

    async def play_one(self, question, index):
        loop, version = asyncio.get_running_loop(), self.version
        began = loop.time()
        self.busy = getattr(self, "busy", 0) + 1
        await asyncio.sleep(1)
        await tools.search()
        self.busy -= 1
        seconds = loop.time() - began
        extra = {"tokens_by_version": {version: 10}, "tool_seconds": seconds - 1}
        ended = (Ending.ANSWERED, Failure.NONE, 1, 10, 20, version, version, seconds)
        return Summary(question.id, index, float(index % 2), 1.0, *ended, extra), "payload"

    async def load(self):
        return SamplerLoad(in_tools=getattr(self, "busy", 0))

    monkeypatch.setattr(OneSampler, "play", play_one)
    monkeypatch.setattr(OneSampler, "load", load)


def under_a_quota(monkeypatch, quota_wait_s):
    tools = LimitedTools(every_s=0.5)
    searching(monkeypatch, tools)
    s = replace(SMALL, steps=20, max_staleness=4, episodes_per_sampler=100, admission=AdmissionSettings(quota_wait_s))
    world = World(1)
    made = []

    async def main():
        made.append(controller(world, s, tools=tools))
        serving = asyncio.create_task(tools.serve())
        try:
            return await made[0].run()
        finally:
            serving.cancel()

    end, _ = play(main)
    assert end.complete
    check_books(made[0])
    return world.metrics


def seconds(metrics, name):
    return sum(m.get(name, 0.0) for m in metrics)


def test_under_a_quota_tokens_are_younger_and_nothing_is_slower_when_fewer_episodes_are_parked(monkeypatch):
    held, parked = under_a_quota(monkeypatch, 5.0), under_a_quota(monkeypatch, 0.0)
    assert seconds(held, "time/step_s") <= 1.02 * seconds(parked, "time/step_s")
    late = slice(10, 16)
    ages = [sum(m["staleness/mean_tokens"] for m in metrics[late]) / 6 for metrics in (held, parked)]
    assert ages[0] < 0.6 * ages[1]
    assert seconds(held, "admission/held_for_quota_s") > 0
    assert seconds(parked, "admission/held_for_quota_s") == 0


def test_idle_time_under_a_quota_is_told_apart_from_that_of_slow_tools(monkeypatch):
    metrics = under_a_quota(monkeypatch, 0.0)
    waited = {cause: seconds(metrics, f"idle/learner_{cause}_s") for cause in ("quota_wait", "tool_wait")}
    assert waited["quota_wait"] > 0.3 * seconds(metrics, "time/step_s")
    assert waited["tool_wait"] < 0.1 * waited["quota_wait"]
    assert seconds(metrics, "idle/sampler_quota_wait_s") > 0
    assert metrics[-2]["tools/waiting_for_quota"] > 0


def test_tools_that_do_not_answer_hold_nothing_up():
    class Silent:
        async def load(self):
            await asyncio.Event().wait()

    world = World(1, Luck())
    run_with(world, SMALL, tools=Silent())
    assert [m["step"] for m in world.metrics] == list(range(1, SMALL.steps + 1))
    assert seconds(world.metrics, "admission/held_for_quota_s") == 0


def test_full_kv_caches_lower_what_a_sampler_plays_and_hold_back_further_groups(monkeypatch):
    most = []

    async def load(self):
        return SamplerLoad(kv_used=1.0, waiting=3)

    class Tools:
        async def load(self):
            return LoadSample()

    real = OneSampler.play

    async def counted(self, question, index):
        self.busy = getattr(self, "busy", 0) + 1
        most.append(self.busy)
        try:
            return await real(self, question, index)
        finally:
            self.busy -= 1

    monkeypatch.setattr(OneSampler, "load", load)
    monkeypatch.setattr(OneSampler, "play", counted)
    s = replace(SMALL, samplers=1, max_staleness=3, episodes_per_sampler=40, steps=15)
    world = World(1, Luck(flat=0.0))
    c = run_with(world, s, tools=Tools())
    assert max(most[:50]) > 30
    assert max(most[-60:]) <= SMALL.group_size + 1  # down to one group
    assert c.fleet.places["s0"].seat.limit == SMALL.group_size
    assert seconds(world.metrics, "admission/held_for_kv_s") > 0
    unchanged = run_with(World(1, Luck(flat=0.0)), replace(s, adaptive_concurrency=False), tools=Tools())
    assert unchanged.fleet.places["s0"].seat.limit == 40


def test_while_a_batch_trains_the_next_one_is_sampled_however_full_the_caches_are(monkeypatch):
    world, upcoming = World(1, Luck(flat=0.0)), []
    train, step = world.train, world.step

    async def main():
        c = controller(world, replace(SMALL, max_staleness=2))

        async def watched(groups, version):
            await asyncio.sleep(0.1)
            upcoming.append(c.buffer.upcoming)
            await asyncio.sleep(100)  # the next batch is ready before anybody waits for it
            return await train(groups, version)

        monkeypatch.setattr(world, "train", watched)
        monkeypatch.setattr(world, "step", slowly_written)
        return await c.run()

    async def slowly_written(*args):
        await asyncio.sleep(1)
        await step(*args)

    monkeypatch.setattr(Places, "kv_full", True)
    play(main)
    assert upcoming == [*[SMALL.groups_per_step] * 5, 0]
    assert seconds(world.metrics, "admission/held_for_kv_s") > 0  # further groups there would have been slots for


def test_what_samplers_have_counted_is_told_also_where_a_step_ends_with_nothing_to_do(monkeypatch):
    async def load(self):
        return SamplerLoad(kv_used=0.5, prefix_hits=30, prefix_asked=40)

    monkeypatch.setattr(OneSampler, "load", load)
    world = World(1, Luck(flat=0.0))
    run_with(world, replace(SMALL, max_staleness=0, groups_per_step=6))
    assert {m["samplers/prefix_hit_share"] for m in world.metrics} == {0.75}
    assert {m["samplers/kv_used_most"] for m in world.metrics} == {0.5}
