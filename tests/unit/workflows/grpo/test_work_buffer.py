"""The invariants of architecture section 4 that the buffer owns, searched for counter-examples."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workflows.grpo.work_buffer import STALE, BufferState, GroupState, Misuse, WorkBuffer


def obvious_batch(buffer, version):
    """The rule of the docstring, word by word: one pick after the other, then everyone who is left behind."""
    left = buffer.groups()
    picks = []
    for _ in range(buffer.groups_per_step):
        finished = [g for g in left[: buffer.window] if g.state is GroupState.FINISHED]
        if not finished:
            return None
        left.remove(finished[0])
        picks.append(finished[0].id)
    takes = [version + 1 + k // buffer.groups_per_step for k in range(len(left))]
    in_time = all(take <= g.admitted_at + buffer.max_staleness for take, g in zip(takes, left, strict=True))
    return picks if in_time else None


class Pipeline(RuleBasedStateMachine):
    """Any order of events that a controller can cause; no sampler is behind the live version."""

    @initialize(per_step=st.integers(1, 4), staleness=st.integers(0, 3), data=st.data())
    def begin(self, per_step, staleness, data):
        slots = (staleness + 1) * per_step
        window = data.draw(st.one_of(st.none(), st.integers(1, slots)))
        self.buffer = WorkBuffer(per_step, staleness, window)
        self.version = 0
        self.taken = []
        self.ended = {}
        self.admitted = {}

    def held(self, *states):
        return [g.id for g in self.buffer.groups(*states)]

    def end(self, group, how):
        assert group not in self.ended, "a group ended twice"
        self.ended[group] = how

    @rule()
    def admit(self):
        free = self.buffer.free_slots
        group = self.buffer.admit(f"q{len(self.admitted)}", self.version)
        assert (group is None) == (free == 0)
        if group is not None:
            self.admitted[group] = self.version

    @precondition(lambda self: self.held(GroupState.WAITING))
    @rule(data=st.data())
    def start(self, data):
        self.buffer.start(data.draw(st.sampled_from(self.held(GroupState.WAITING))))

    @precondition(lambda self: self.held(GroupState.INFLIGHT))
    @rule(data=st.data())
    def finish(self, data):
        group = data.draw(st.sampled_from(self.held(GroupState.INFLIGHT)))
        oldest = data.draw(st.integers(self.admitted[group], self.version))
        self.buffer.finish(group, oldest)

    @precondition(lambda self: self.held(GroupState.FINISHED))
    @rule(data=st.data())
    def filter(self, data):
        group = data.draw(st.sampled_from(self.held(GroupState.FINISHED)))
        self.buffer.filter(group, "flat")
        self.end(group, "filtered")

    @precondition(lambda self: len(self.held()) > len(self.taken))
    @rule(data=st.data())
    def cancel(self, data):
        group = data.draw(st.sampled_from([g for g in self.held() if g not in self.taken]))
        self.buffer.cancel(group, "infra")
        self.end(group, "cancelled")

    @precondition(lambda self: not self.taken)
    @rule()
    def take(self):
        queue = self.held()
        expected = obvious_batch(self.buffer, self.version)
        born = {g.id: g.born for g in self.buffer.groups()}
        unfinished = self.held(GroupState.WAITING, GroupState.INFLIGHT)
        batch = self.buffer.take(self.version)
        assert batch == expected
        assert self.buffer.cancelled[STALE] == 0, "admission and order alone keep every group young enough"
        if batch is None:
            assert unfinished or len(queue) < self.buffer.groups_per_step, "everything is finished, yet no step"
            return
        self.taken = batch
        assert len(batch) == self.buffer.groups_per_step
        for group in batch:
            assert self.version - born[group] <= self.buffer.max_staleness
        for i, group in enumerate(batch):  # overtaking stays inside the window, which starts at the oldest group left
            left = [other for other in queue if other not in batch[:i]]
            assert left.index(group) < self.buffer.window

    @precondition(lambda self: self.taken)
    @rule()
    def publish(self):
        self.version += 1
        self.buffer.release(self.taken, self.version)
        for group in self.taken:
            self.end(group, "trained")
        self.taken = []

    @precondition(lambda self: not self.taken)
    @rule()
    def restart(self):
        text = json.dumps(self.buffer.snapshot().to_json())
        inflight = self.held(GroupState.INFLIGHT)
        before = {g.id: g for g in self.buffer.groups()}
        self.buffer = WorkBuffer.restore(BufferState.from_json(json.loads(text)))
        for group in self.buffer.groups():
            expected = GroupState.WAITING if group.id in inflight else before[group.id].state
            assert group.state is expected

    @invariant()
    def every_group_ends_exactly_once(self):
        if not hasattr(self, "buffer"):
            return
        b = self.buffer
        assert b.admitted == len(self.admitted) == b.released + b.held
        assert b.admitted == b.trained + b.filtered.total() + b.cancelled.total() + b.held
        ends = list(self.ended.values())
        assert (b.trained, b.filtered.total(), b.cancelled.total()) == tuple(
            ends.count(how) for how in ("trained", "filtered", "cancelled")
        )
        assert set(self.held()) == set(self.admitted) - set(self.ended)

    @invariant()
    def no_more_groups_than_slots(self):
        if hasattr(self, "buffer"):
            assert self.buffer.held <= (self.buffer.max_staleness + 1) * self.buffer.groups_per_step


TestPipeline = Pipeline.TestCase
TestPipeline.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def full(per_step, staleness, window=None):
    buffer = WorkBuffer(per_step, staleness, window)
    groups = []
    while (group := buffer.admit(f"q{len(groups)}", 0)) is not None:
        buffer.start(group)
        groups.append(group)
    return buffer, groups


def test_the_worked_example_of_the_docstring_holds():
    buffer, (a, b, c, d) = full(2, 1, window=1)
    for group in (a, b, c, d):
        buffer.finish(group, 0)
    assert buffer.take(0) == [a, b]
    assert buffer.free_slots == 0
    buffer.release([a, b], 1)
    e, f = buffer.admit("e", 1), buffer.admit("f", 1)
    assert buffer.take(1) == [c, d]
    buffer.release([c, d], 2)
    for group in (e, f):
        buffer.start(group)
        buffer.finish(group, 1)
    assert buffer.take(2) == [e, f]


@given(st.permutations(range(6)), st.integers(1, 3))
def test_without_staleness_nothing_older_than_the_weights_is_ever_taken(order, steps):
    buffer = WorkBuffer(6, 0)
    for version in range(steps):
        groups = [buffer.admit(f"{version}/{i}", version) for i in range(6)]
        assert buffer.admit("one more", version) is None
        for group in groups:
            buffer.start(group)
        for i in order[:-1]:
            buffer.finish(groups[i], version)
            assert buffer.take(version) is None
        buffer.finish(groups[order[-1]], version)
        assert buffer.take(version) == groups
        assert buffer.admit("while the batch trains", version) is None
        buffer.release(groups, version + 1)
    assert buffer.cancelled.total() == 0


def test_tokens_of_a_sampler_that_lags_behind_are_dropped_and_counted():
    buffer, groups = full(2, 0)
    buffer.finish(groups[0], -1)  # a sampler that runs weights from before the admission
    buffer.finish(groups[1], 0)
    assert buffer.take(0) is None
    assert buffer.cancelled == {STALE: 1}
    assert buffer.free_slots == 1


def test_a_finished_group_overtakes_within_the_window_only():
    buffer, groups = full(1, 3, window=2)
    buffer.finish(groups[2], 0)
    assert buffer.take(0) is None
    buffer.finish(groups[1], 0)
    assert buffer.take(0) == [groups[1]]


def test_a_group_at_its_last_chance_is_waited_for():
    buffer, groups = full(1, 1, window=2)
    buffer.finish(groups[1], 0)
    assert buffer.take(0) == [groups[1]]  # the first one may still come at version 1
    buffer.release([groups[1]], 1)
    late = buffer.admit("late", 1)
    buffer.start(late)
    buffer.finish(late, 1)
    assert buffer.take(1) is None  # now it may not be overtaken again
    buffer.finish(groups[0], 0)
    assert buffer.take(1) == [groups[0]]


def test_expired_names_what_no_learner_will_train_on():
    buffer, groups = full(2, 1)
    assert buffer.expired(1) == []
    assert buffer.expired(2) == groups


@pytest.mark.parametrize(
    "misuse",
    [
        lambda b, g: b.start(g[0]),
        lambda b, g: b.filter(g[0], "flat"),
        lambda b, g: b.finish(99, 0),
        lambda b, g: b.release([g[0]], 1),
        lambda b, g: (b.cancel(g[0], "infra"), b.cancel(g[0], "infra")),
        lambda b, g: (b.cancel(g[1], "infra"), b.admit("from the past", -1)),
        lambda b, g: (b.finish(g[0], 0), b.finish(g[1], 0), b.take(0), b.release(g, 0)),
        lambda b, g: (b.finish(g[0], 0), b.finish(g[1], 0), b.take(0), b.release([g[0], g[0]], 1)),
        lambda b, g: (b.finish(g[0], 0), b.finish(g[1], 0), b.take(0), b.take(0)),
        lambda b, g: (b.finish(g[0], 0), b.finish(g[1], 0), b.take(0), b.cancel(g[0], "x")),
        lambda b, g: (b.finish(g[0], 0), b.finish(g[1], 0), b.take(0), b.snapshot()),
    ],
)
def test_a_verb_out_of_order_fails_loudly_and_keeps_the_counts(misuse):
    buffer, groups = full(2, 0)
    with pytest.raises(Misuse):
        misuse(buffer, groups)
    assert buffer.admitted == buffer.released + buffer.held


def test_a_snapshot_stays_as_it_was_whatever_happens_to_the_buffer_and_to_one_restored_from_it():
    buffer, groups = full(2, 1)
    state = buffer.snapshot()
    before = state.to_json()
    restored = WorkBuffer.restore(state)
    buffer.finish(groups[0], 0)
    restored.start(groups[0])
    assert state.to_json() == before


def test_a_snapshot_that_does_not_add_up_is_refused():
    state = full(2, 1)[0].snapshot().to_json()
    with pytest.raises(ValueError, match="do not add up"):
        WorkBuffer.restore(BufferState.from_json({**state, "trained": 3}))
    with pytest.raises(ValueError, match="more groups than slots"):
        WorkBuffer.restore(BufferState.from_json({**state, "max_staleness": 0, "window": 1}))
