"""When an attempt is late, and who is told to stop then."""

import asyncio
from dataclasses import dataclass, field

from actors.agent.seams import Sampling
from tests.unit.workflows.grpo.bad_world import SMALL, Luck, OneSampler, World, play
from workflows.grpo.dispatch import Fleet
from workflows.grpo.places import FleetLimits
from workflows.grpo.plan import plan_of
from workflows.settings import load


@dataclass
class HangsOnce(OneSampler):
    """Its first episode of index 1 never ends by itself; the others take 25 s."""

    cancelled: list = field(default_factory=list)

    async def run(self, question, index, sampling):
        if index == 1 and not self.cancelled:
            await asyncio.Event().wait()
        await asyncio.sleep(25)
        return await self.play(question, index)

    async def cancel(self, question_id, sample_index=None):
        self.cancelled.append((question_id, sample_index))


def test_a_late_attempt_is_cancelled_alone_and_a_group_that_has_ended_whole():
    world = World(0, Luck())
    sampler, episodes = HangsOnce("s0", world, latency=0.1), []

    async def main():
        fleet = Fleet([sampler], FleetLimits.of(SMALL, episode_s=30), world.say)
        await fleet.start(0)

        async def sibling(index):
            await asyncio.sleep(20 * (index == 2))  # it is in time when the one that hangs is late
            return await fleet.episode(world.questions["q1"], index, Sampling(), (0, index), "group")

        episodes.extend(await asyncio.gather(*map(sibling, range(4))))
        assert sampler.cancelled == [("q1", 1)]
        await fleet.abort("q1")

    play(main)
    assert sampler.cancelled == [("q1", 1), ("q1", None)]
    assert [len(episode.failures) for episode in episodes] == [0, 1, 0, 0]
    assert all(episode.summary for episode in episodes)


def test_no_episode_is_given_up_before_its_own_deadline_and_its_scoring_are_over():
    overrides = ["agent.limits.episode_timeout_s=1000", "agent.limits.grace_s=20", "reward.timeout=40"]
    assert plan_of(load("embedded", overrides)).episode_s == 1060
