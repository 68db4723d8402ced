"""Samplers that join and leave while a run lasts, on a clock that jumps."""

import asyncio
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workflows.grpo.bad_world import (
    SMALL,
    Luck,
    OneSampler,
    World,
    check_books,
    controller,
    lucks,
    play,
)

GROWING = replace(SMALL, steps=12, samplers=1, max_samplers=4, max_staleness=2, episodes_per_sampler=6)


@dataclass
class Room:
    """A cluster with room for so many further samplers, which nodes give and take."""

    world: World
    free: int = 0
    fails: list = field(default_factory=list)  # what the next recruits raise
    made: list = field(default_factory=list)
    dismissed: list = field(default_factory=list)
    offers: int = 0

    async def recruit(self):
        self.offers += 1
        try:
            while not self.free:
                await asyncio.sleep(1)
            if self.fails:
                raise self.fails.pop()
            self.free -= 1
            await asyncio.sleep(2)
        finally:
            self.offers -= 1
        sampler = OneSampler(f"extra-{len(self.made)}", self.world)
        self.made.append(sampler)
        return sampler

    async def dismiss(self, sampler):
        await asyncio.sleep(0.5)
        self.dismissed.append(sampler.name)

    def take_node(self):
        """The node of the newest sampler is gone, and its room with it."""
        alive = [sampler for sampler in self.made if not sampler.dead]
        if alive:
            alive[-1].dead = True


def run_with(world, s, at):
    """A run during which `at`, (second, action on the room), happens; returns (end, controller, room)."""
    made = []

    async def main():
        room = Room(world)
        c = controller(world, s, recruiter=room)
        made.extend([c, room])
        loop = asyncio.get_running_loop()
        for second, action in at:
            loop.call_later(second, action, room)
        return await c.run()

    end, _ = play(main)
    check_books(made[0])
    return end, *made


def give(n):
    return lambda room: setattr(room, "free", room.free + n)


def test_a_run_grows_when_there_is_room_and_no_further_than_it_may():
    world = World(1, Luck(flat=0.0))
    _, c, room = run_with(world, replace(GROWING, steps=30), [(60, give(9))])
    live = [m["samplers/live"] for m in world.metrics]
    assert live[0] == 1
    assert live[-1] == max(live) == 4
    assert (len(room.made), room.offers) == (3, 0)
    assert len(c.fleet.places) == 4


def test_more_samplers_make_steps_shorter():
    alone, helped = World(1, Luck(flat=0.0)), World(1, Luck(flat=0.0))
    s = replace(GROWING, steps=30, episodes_per_sampler=4)
    run_with(alone, s, [])
    run_with(helped, s, [(3, give(3))])
    seconds = [sum(m["time/step_s"] for m in world.metrics[10:]) for world in (alone, helped)]
    assert seconds[1] < 0.7 * seconds[0]


def test_who_joins_has_the_newest_weights_before_its_first_episode(monkeypatch):
    seen = []
    real = OneSampler.play

    async def watched(self, question, index):
        seen.append((self.name, self.version, self.world.published))
        return await real(self, question, index)

    monkeypatch.setattr(OneSampler, "play", watched)
    world = World(2, Luck(flat=0.0))
    _, _, room = run_with(world, GROWING, [(second, give(1)) for second in (5, 11, 23)])
    assert room.made
    first = {name: (version, live) for name, version, live in reversed(seen)}
    for sampler in room.made:
        version, live = first.get(sampler.name, (0, 0))
        assert live - version <= 1  # a publication may be on its way to all samplers, this one among them
        assert version >= 0
    assert all(m["staleness/max"] <= 2 for m in world.metrics)


def test_a_node_that_goes_shrinks_the_run_and_what_it_played_is_played_again():
    world = World(3, Luck(flat=0.0))
    end, c, room = run_with(
        world, replace(GROWING, steps=30), [(3, give(3)), (25, Room.take_node), (40, Room.take_node)]
    )
    assert end.complete
    assert room.dismissed == ["extra-2", "extra-1"]
    assert world.metrics[-1]["samplers/live"] == 2
    assert any("sampler extra-2 has left" in line for line in world.said)
    assert [f"sampler:extra-{i}" in c.watch.report(c.step, c.version) for i in range(3)] == [True, False, False]
    assert c.totals["episodes/masked"] == 0
    assert c.buffer.cancelled.total() == 0
    assert room.offers == 0  # given up when the run ended


def test_those_that_there_must_be_are_replaced_and_do_not_leave():
    world = World(3, Luck(flat=0.0))

    async def main():
        c = controller(world, GROWING, recruiter=Room(world))
        asyncio.get_running_loop().call_later(10, setattr, c.fleet.places["s0"].sampler, "dead", True)
        return await c.run()

    end, _ = play(main)
    assert end.complete
    assert any("sampler s0 is back" in line for line in world.said)
    assert not any("has left" in line for line in world.said)


def test_one_that_cannot_start_or_cannot_load_the_weights_is_ended_and_tried_again(monkeypatch):
    world = World(4, Luck(flat=0.0))
    refused = []
    real = OneSampler.update

    async def update(self, ticket):
        if self.name == "extra-0" and not refused:
            refused.append(ticket)
            raise RuntimeError("torn publish")
        await real(self, ticket)

    monkeypatch.setattr(OneSampler, "update", update)

    def broken_node(room):
        room.fails = [OSError("no engine")]
        room.free = 2

    _, c, room = run_with(world, replace(GROWING, steps=30), [(3, broken_node)])
    assert refused
    assert any("could not start: OSError: no engine" in line for line in world.said)
    assert room.dismissed == ["extra-0"]
    assert [place.name for place in c.fleet.places] == ["s0", "extra-1"]


def test_what_a_leaving_sampler_ran_is_reissued_however_often_that_happens(monkeypatch):
    """Leaving is no failure of the episode: with one retry allowed, it may be moved more than once."""
    world = World(5, Luck(flat=0.0))
    s = replace(GROWING, episode_retries=0, min_siblings=4, steps=8)

    def everybody_leaves(room):
        for sampler in room.made:
            if sampler.name in {place.name for place in made[0].fleet.places}:
                made[0].fleet.leave(sampler.name, "its node is wanted back")

    made = []

    async def main():
        room = Room(world, free=2)
        made.append(controller(world, s, recruiter=room))
        for second in (6, 9, 12, 15, 18):
            asyncio.get_running_loop().call_later(second, everybody_leaves, room)
            asyncio.get_running_loop().call_later(second, give(1), room)
        return await made[0].run()

    end, _ = play(main)
    assert end.complete
    assert made[0].totals["episodes/failed_attempts"] > 0
    assert made[0].totals["episodes/masked"] == 0


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), lucks, st.lists(st.tuples(st.integers(1, 120), st.booleans()), max_size=10),
    st.integers(0, 2), st.integers(1, 2),
)  # fmt: skip
def test_whoever_comes_and_goes_the_run_ends_and_the_books_balance(seed, luck, changes, staleness, samplers):
    world = World(seed, luck)
    s = replace(GROWING, steps=6, max_staleness=staleness, samplers=samplers)
    at = [(second, give(1) if comes else Room.take_node) for second, comes in changes]
    end, c, _ = run_with(world, s, at)
    assert end.complete
    assert len(world.lineage) == len(set(world.lineage)) == s.steps * s.groups_per_step == c.buffer.trained
    assert max(m["staleness/max"] for m in world.metrics) <= staleness
    assert 1 <= len(c.fleet.places) <= 4
    assert c.fleet.places.seating._homes == {}
    assert all(place.seat.load == 0 for place in c.fleet.places)
    assert c.admission.episodes == 0
