"""The controller against coroutines that behave badly, on an event loop whose clock jumps: hours in milliseconds.

The samplers, learner and storage here are real coroutines with latencies, deaths and failures drawn from a
seed. The loop raises when everything waits for ever, so a hang is a failure at once.
"""

import asyncio
import contextlib
import json
import random
import selectors
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure, Label, Question, Summary
from workflows.grpo.controller import Controller, RunFailed
from workflows.grpo.dispatch import NoSampler
from workflows.grpo.ports import BudgetSpent, ControllerState, SamplerGone
from workflows.grpo.prompts_cursor import CursorState
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.work_buffer import BufferState, GroupState


class Killed(BaseException):
    """The machine lost power."""


class JumpingSelector(selectors.SelectSelector):
    """Waits take no time: the clock jumps to the next timer."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.now, self.turns, self.kill_at = 0.0, 0, kill_at

    def select(self, timeout=None):
        self.turns += 1
        if self.turns == self.kill_at:
            raise Killed
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for ever"
            self.now += max(timeout, 0.0)
        return ready


def play(coroutine_of, kill_at=None):
    """Run `coroutine_of()` on a virtual clock; returns (result or None if killed, loop turns)."""
    selector = JumpingSelector(kill_at)
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    loop.set_exception_handler(lambda *_: None)
    try:
        return loop.run_until_complete(coroutine_of()), selector.turns
    except Killed:
        loop.call_soon = lambda *_, **__: None  # nothing runs any more, not even what cleans up
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
            with contextlib.suppress(RuntimeError):
                task.get_coro().close()
        return None, selector.turns
    finally:
        selector.kill_at = None
        asyncio.set_event_loop(None)
        loop.close()


@dataclass
class Luck:
    """Probabilities of what may go wrong, per episode."""

    infra: float = 0.0
    error: float = 0.0
    hang: float = 0.0
    death: float = 0.0
    data: float = 0.0
    flat: float = 0.2  # per question
    update_fails: float = 0.0


@dataclass
class World:
    seed: int = 0
    luck: Luck = field(default_factory=Luck)
    lineage: list = field(default_factory=list)  # group ids that the learner's weights have seen
    saved: list = field(default_factory=list)  # checkpoints: (state as JSON, finished groups, lineage)
    metrics: list = field(default_factory=list)
    said: list = field(default_factory=list)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        kinds = ("looking", "head", "two hops")
        self.questions = {
            f"q{i}": Question(f"q{i}", "?", kind=kinds[i % 3], designed_label=Label.REQUIRED if i % 3 else Label.FREE)
            for i in range(60)
        }

    def step(self, *args):
        return self._record(*args)

    async def _record(self, step, metrics, groups):
        self.metrics.append({**metrics, "step": step})

    def say(self, message):
        self.said.append(message)

    # the learner
    async def train(self, groups, version):
        await asyncio.sleep(self.random.uniform(1, 5))
        assert not {g.id for g in groups} & set(self.lineage), "a group is trained on twice"
        self.lineage += [g.id for g in groups]
        return {"loss": 0.5}

    async def publish(self, version):
        await asyncio.sleep(self.random.uniform(0.1, 0.5))
        return version

    # the storage
    async def save(self, state, finished):
        lineage = list(self.lineage)
        await asyncio.sleep(self.random.uniform(0.1, 1))
        text = json.dumps(
            {
                "step": state.step,
                "version": state.version,
                "buffer": state.buffer.to_json(),
                "cursor": state.cursor.to_json(),
                "totals": dict(state.totals),
            }
        )
        self.saved.append((text, list(finished), lineage))


@dataclass
class OneSampler:
    name: str
    world: World
    version: int = -1
    dead: bool = False
    latency: float = 2.0

    async def run(self, question, index, sampling):
        world, luck, chance = self.world, self.world.luck, self.world.random.random
        if self.dead:
            raise SamplerGone("was dead")
        assert self.version >= 0, "asked to sample before it had weights"
        tokens = {}
        for _ in range(world.random.randint(1, 3)):
            tokens[self.version] = tokens.get(self.version, 0) + 10
            await asyncio.sleep(world.random.expovariate(1 / self.latency))
            if self.dead:
                raise SamplerGone("died under way")
        if chance() < luck.death:
            self.dead = True
            raise SamplerGone("died")
        if chance() < luck.hang:
            await asyncio.Event().wait()
        if chance() < luck.error:
            raise ConnectionError("lost")
        failure = Failure.NONE
        if chance() < luck.infra:
            failure = Failure.INFRA
        elif chance() < luck.data:
            failure = Failure.DATA
        flat = random.Random(question.id).random() < luck.flat
        reward = 0.5 if flat else float(index % 2)
        return (
            Summary(
                question.id, index, reward, reward, Ending.ANSWERED, failure, index % 2, sum(tokens.values()), 50,
                min(tokens), max(tokens), 1.0, {"tokens_by_version": tokens},
            ),
            f"payload of {question.id}/{index}",
        )  # fmt: skip

    async def update(self, ticket):
        await asyncio.sleep(0.1)
        if self.dead:
            raise SamplerGone("was dead")
        if self.version >= 0 and self.world.random.random() < self.world.luck.update_fails:
            raise RuntimeError("torn publish")
        self.version = ticket

    async def cancel(self, question_id):
        await asyncio.sleep(0.01)

    async def in_tools(self):
        return self.world.random.randint(0, 4)

    async def healthy(self):
        return not self.dead

    async def revive(self):
        await asyncio.sleep(3)
        self.dead, self.version = False, -1


SMALL = GrpoSettings(
    steps=6, groups_per_step=3, group_size=4, max_staleness=1, samplers=2, episodes_per_sampler=20,
    checkpoint_every=2, episode_timeout_s=60, stall_report_s=30, batch_timeout_s=2000, ready_timeout_s=60,
)  # fmt: skip


def controller(world, settings, resume=False):
    samplers = [OneSampler(f"s{i}", world) for i in range(settings.samplers)]
    state, finished = None, ()
    if resume and world.saved:
        text, finished, lineage = world.saved[-1]
        data = json.loads(text)
        state = ControllerState(
            data["step"], data["version"], BufferState.from_json(data["buffer"]),
            CursorState.from_json(data["cursor"]), data["totals"],
        )  # fmt: skip
        world.lineage[:] = lineage
    elif resume:
        world.lineage.clear()
    return Controller(settings, world.questions, samplers, world, world, world, 0, state, finished)


def check_books(c):
    b = c.buffer
    assert b.admitted == b.released + b.held
    assert b.admitted == b.trained + b.filtered.total() + b.cancelled.total() + b.held
    assert b.held <= b.slots


def run_all(world, settings):
    made = []

    async def main():
        made.append(controller(world, settings))
        return await made[0].run()

    end, _ = play(main)
    check_books(made[0])
    return end, made[0]


lucks = st.builds(
    Luck,
    infra=st.sampled_from([0.0, 0.1]),
    error=st.sampled_from([0.0, 0.1]),
    hang=st.sampled_from([0.0, 0.02]),
    death=st.sampled_from([0.0, 0.02]),
    data=st.sampled_from([0.0, 0.02]),
    flat=st.sampled_from([0.0, 0.5]),
    update_fails=st.sampled_from([0.0, 0.2]),
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), lucks, st.integers(0, 2), st.integers(1, 3))
def test_whatever_goes_wrong_the_run_ends_and_the_books_balance(seed, luck, staleness, samplers):
    world = World(seed, luck)
    end, c = run_all(world, replace(SMALL, max_staleness=staleness, samplers=samplers))
    assert end.complete
    assert c.step == c.version == SMALL.steps == len(world.metrics)
    assert len(world.lineage) == len(set(world.lineage)) == SMALL.steps * SMALL.groups_per_step == c.buffer.trained
    assert max(m["staleness/max"] for m in world.metrics) <= staleness


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), lucks)
def test_without_staleness_every_token_is_of_the_weights_that_it_trains(seed, luck):
    world = World(seed, luck)
    run_all(world, replace(SMALL, max_staleness=0))
    assert all(m["staleness/max"] == m["staleness/mean_tokens"] == 0 for m in world.metrics)


def test_with_staleness_updates_land_inside_episodes_and_samplers_stay_busy():
    sync, overlapped = World(3), World(3)
    run_all(sync, replace(SMALL, max_staleness=0, steps=20))
    run_all(overlapped, replace(SMALL, max_staleness=2, steps=20))
    assert 0 < max(m["staleness/max"] for m in overlapped.metrics) <= 2
    time = {name: sum(m["time/step_s"] for m in w.metrics) for name, w in (("s", sync), ("o", overlapped))}
    assert time["o"] < 0.8 * time["s"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), lucks, st.lists(st.integers(5, 900), min_size=1, max_size=4), st.integers(0, 2))
def test_a_run_killed_at_any_await_resumes_and_trains_nothing_twice(seed, luck, kills, staleness):
    world = World(seed, luck)
    s = replace(SMALL, max_staleness=staleness)
    made = []

    async def main():
        made.append(controller(world, s, resume=True))
        return await made[-1].run()

    for kill_at in kills:
        before = world.saved[-1] if world.saved else None
        end, _ = play(main, kill_at)
        if end:
            break
        if before:
            assert made[-1].step >= json.loads(before[0])["step"]
    end, _ = play(main)
    assert end.complete
    assert len(world.lineage) == len(set(world.lineage)) == s.steps * s.groups_per_step
    check_books(made[-1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 60.0), lucks)
def test_a_stopped_run_saves_between_steps_and_continues(seed, after, luck):
    world = World(seed, luck)
    made = []

    async def main():
        made.append(controller(world, SMALL, resume=True))
        asyncio.get_running_loop().call_later(after, made[-1].stop, "Ctrl-C")
        return await made[-1].run()

    end, _ = play(main)
    state = json.loads(world.saved[-1][0])
    assert state["step"] == end.step
    assert GroupState.TAKEN not in {g["state"] for g in state["buffer"]["groups"]}
    if not end.complete:
        assert end.reason == "Ctrl-C"
    kept = [g.id for g in world.saved[-1][1]]
    after = 10**9
    end, _ = play(main)
    assert end.complete
    ends = set(world.lineage) | {g.id for g in made[-1].buffer.groups()}
    assert made[-1].buffer.cancelled.total() or set(kept) <= ends


def test_finished_groups_of_a_checkpoint_are_not_sampled_again(monkeypatch):
    world = World(1, Luck(flat=0.0))
    s = replace(SMALL, max_staleness=2)
    asked = []
    real_run = OneSampler.run

    async def watched(self, question, index, sampling):
        asked.append(question.id)
        return await real_run(self, question, index, sampling)

    async def first():
        c = controller(world, s)
        asyncio.get_running_loop().call_later(12.0, c.stop, "Ctrl-C")
        return await c.run()

    play(first)
    _, finished, _ = world.saved[-1]
    assert finished
    monkeypatch.setattr(OneSampler, "run", watched)
    end, _ = play(lambda: controller(world, s, resume=True).run())
    assert end.complete
    assert {g.id for g in finished} <= set(world.lineage)
    assert asked
    assert not {g.question.id for g in finished} & set(asked)


def test_flat_groups_are_refilled_but_never_for_ever():
    world = World(0, Luck(flat=1.0))
    end, c = run_all(world, replace(SMALL, refill_limit=2.0))
    assert end.complete
    assert 0 < c.buffer.filtered.total() <= SMALL.steps * 2 * SMALL.groups_per_step + c.buffer.slots


def test_how_good_the_policy_is_is_measured_over_filtered_groups_too():
    world = World(0, Luck(flat=0.5))
    end, c = run_all(world, SMALL)
    assert end.complete
    assert c.buffer.filtered.total() > 0
    sampled = sum(m.get("sampled/episodes", 0.0) for m in world.metrics) / SMALL.group_size
    ended = c.buffer.trained + c.buffer.filtered.total()
    assert c.buffer.trained < ended - c.buffer.slots < sampled <= ended + c.buffer.slots
    assert all(0 <= m.get("sampled/reward/mean", 0.5) <= 1 for m in world.metrics)


def test_masked_episodes_are_left_out_and_never_scored():
    world = World(0, Luck(infra=0.6, flat=0.0))
    end, _ = run_all(world, SMALL)
    assert end.complete
    assert sum(m["episodes/masked"] for m in world.metrics) > 0
    for m in world.metrics:
        assert m["episodes/trained"] + m["episodes/masked"] == SMALL.groups_per_step * SMALL.group_size


def test_a_systematic_failure_stops_the_run_with_its_reason_and_a_checkpoint():
    world = World(0, Luck(error=1.0))
    with pytest.raises(RunFailed, match="ConnectionError: lost"):
        run_all(world, SMALL)
    assert world.saved


def test_dead_samplers_that_never_come_back_end_the_run(monkeypatch):
    async def never(self):
        raise OSError("no node left")

    monkeypatch.setattr(OneSampler, "revive", never)
    world = World(0, Luck(death=0.5))
    with pytest.raises((NoSampler, RunFailed)):
        run_all(world, SMALL)
    assert any("could not be revived" in line for line in world.said)


def test_a_spent_budget_stops_at_a_checkpoint(monkeypatch):
    async def broke(self, question, index, sampling):
        await asyncio.sleep(1)
        raise BudgetSpent("search: 100 of 100 USD are spent")

    monkeypatch.setattr(OneSampler, "run", broke)
    world = World()
    with pytest.raises(BudgetSpent, match="100 USD"):
        run_all(world, SMALL)
    state = json.loads(world.saved[-1][0])
    assert {g["state"] for g in state["buffer"]["groups"]} == {"inflight"}


def test_a_learner_that_breaks_leaves_no_checkpoint_of_a_half_step(monkeypatch):
    async def breaks(groups, version):
        raise FloatingPointError("nan")

    world = World()
    monkeypatch.setattr(world, "train", breaks)
    with pytest.raises(FloatingPointError):
        run_all(world, SMALL)
    assert not world.saved


def test_a_learner_that_hangs_is_given_up_with_a_report(monkeypatch):
    async def hangs(groups, version):
        await asyncio.Event().wait()

    world = World()
    monkeypatch.setattr(world, "train", hangs)
    with pytest.raises(RunFailed, match=r"training took longer than 900 s(.|\n)*learner: busy"):
        run_all(world, SMALL)


def test_a_stall_is_reported_while_it_lasts():
    world = World(0, Luck(hang=0.3, flat=0.0))
    end, _ = run_all(world, replace(SMALL, episode_timeout_s=300))
    assert end.complete
    report = next(line for line in world.said if "no progress" in line)
    assert "learner: waits for" in report
    assert "sampler s0: runs" in report
    assert "inflight" in report


def test_idle_time_has_causes_and_adds_up():
    world = World(5)
    run_all(world, replace(SMALL, max_staleness=0, samplers=1))
    for m in world.metrics:
        idle = sum(v for k, v in m.items() if k.startswith("idle/learner") and k.endswith("_s"))
        share = m["idle/learner_busy_share"]
        assert idle == pytest.approx((1 - share) * m["time/step_s"], abs=1e-6)
    assert sum(m.get("idle/sampler_no_slot_s", 0) for m in world.metrics) > 0
    assert sum(m.get("idle/learner_long_tail_s", 0) for m in world.metrics) > 0
    assert all(m["idle/learner_publish_s"] >= 0.2 for m in world.metrics)
