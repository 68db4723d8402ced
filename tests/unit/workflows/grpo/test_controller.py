"""The controller against coroutines that behave badly, on an event loop whose clock jumps: hours in milliseconds."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure, Summary
from tests.unit.workflows.grpo.bad_world import (
    SMALL,
    Luck,
    OneSampler,
    World,
    check_books,
    controller,
    lucks,
    play,
    run_all,
)
from workflows.grpo.controller import RunFailed
from workflows.grpo.ports import BudgetSpent
from workflows.grpo.seat_queue import NoSampler
from workflows.grpo.work_buffer import GroupState


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


def test_a_stop_that_comes_with_the_last_step_is_not_forgotten():
    world = World(0, Luck())

    async def main(stops):
        c = controller(world, replace(SMALL, steps=1))
        if stops:
            c.stop("Ctrl-C while its only step is under way")
            c.step = 1
        return await c.run()

    (stopped, _), (undisturbed, _) = play(lambda: main(True)), play(lambda: main(False))
    assert (stopped.complete, stopped.stopped) == (True, True)
    assert (undisturbed.complete, undisturbed.stopped) == (True, False)


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


def test_a_step_that_storage_never_takes_down_ends_the_run_with_a_report(monkeypatch):
    async def hangs(*_):
        await asyncio.Event().wait()

    world = World()
    monkeypatch.setattr(world, "step", hangs)
    with pytest.raises(RunFailed, match="writing the step down took longer than 600 s"):
        run_all(world, SMALL)
    assert world.saved


def test_a_sampler_that_hangs_is_fenced_by_its_probe_long_before_its_episodes_are_late(monkeypatch):
    run, hung = OneSampler.run, []

    async def hangs(self, *args):
        if self.name == "s0" and not hung:
            hung.append(asyncio.get_running_loop().time())
            self.dead = True
            self.healthy = asyncio.Event().wait  # as a stopped process: neither answers nor fails
        if self.dead:
            await asyncio.Event().wait()
        return await run(self, *args)

    async def revive(self):
        self.dead, self.version, self.healthy = False, -1, alive

    async def alive():
        back.append(asyncio.get_running_loop().time())
        return True

    back = []
    monkeypatch.setattr(OneSampler, "run", hangs)
    monkeypatch.setattr(OneSampler, "revive", revive)
    world = World()
    end, _ = run_all(world, replace(SMALL, steps=12, probe_every_s=5, probe_timeout_s=15), episode_s=600)
    assert end.complete
    assert any("s0 is fenced: does not answer its health probe" in line for line in world.said)
    assert back[0] - hung[0] < 45


def test_an_engine_that_fails_all_episodes_at_once_spoils_few_of_them(monkeypatch):
    play, played = OneSampler.play, []

    async def spoils(self, question, index):
        played.append(question.id)
        if len(played) == 5 or self.dead:
            return failed(question, index, self)
        return await play(self, question, index)

    def failed(question, index, sampler):
        sampler.dead = True  # as an engine whose core has died: its sampler answers, and every episode fails
        return Summary(question.id, index, 0.0, 0.0, Ending.FAILED, Failure.INFRA, 0, 10, 50, 0, 0, 1.0, {}), "nothing"

    monkeypatch.setattr(OneSampler, "play", spoils)
    world = World(0, Luck(flat=0.0))
    end, c = run_all(world, replace(SMALL, samplers=1, probe_every_s=60))
    assert end.complete
    assert any("s0 is back" in line for line in world.said)
    assert c.totals["episodes/masked"] == 0


def test_a_stall_is_reported_while_it_lasts():
    world = World(0, Luck(hang=0.3, flat=0.0))
    end, _ = run_all(world, SMALL, episode_s=300)
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


def test_what_a_step_is_written_down_in_and_saved_in_is_no_publishing(monkeypatch):
    world = World(5)
    save, step = world.save, world.step

    async def slowly_saved(state, finished):
        await asyncio.sleep(50)
        await save(state, finished)

    async def slowly_written(*args):
        await asyncio.sleep(20)
        await step(*args)

    monkeypatch.setattr(world, "save", slowly_saved)
    monkeypatch.setattr(world, "step", slowly_written)
    run_all(world, SMALL)
    for m in world.metrics[1:]:
        assert m["idle/learner_record_s"] == pytest.approx(20)
        assert m.get("idle/learner_checkpoint_s", 0) == pytest.approx(51 if m["step"] in (3, 5) else 0, abs=1)
        assert m["idle/learner_publish_s"] < 2


def test_a_sampler_that_is_replaced_is_fenced_for_so_long_and_not_busy(monkeypatch):
    async def slowly(self):
        await asyncio.sleep(40)
        self.dead, self.version = False, -1

    async def dies(self, question, index):
        self.dead = self.dead or (self.name == "s0" and len(world.metrics) == 1)
        return await play_one(self, question, index)

    play_one = OneSampler.play
    monkeypatch.setattr(OneSampler, "revive", slowly)
    monkeypatch.setattr(OneSampler, "play", dies)
    world = World(5, Luck(flat=0.0))
    run_all(world, replace(SMALL, steps=8))
    fenced = [m.get("idle/sampler_fenced_s", 0) for m in world.metrics]
    assert fenced[0] == 0
    assert sum(fenced) > 40
