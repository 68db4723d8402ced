"""Whether one more group may begin, against search endpoints with limits: simulated second by second."""

import math
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure, Summary
from actors.search.load import EndpointLoad, LoadSample
from workflows.grpo.admission import Admission
from workflows.grpo.settings import AdmissionSettings

SIBLINGS = 8


def summary(seconds, tool_seconds):
    extra = {"tool_seconds": tool_seconds}
    return Summary("q", 0, 1.0, 1.0, Ending.ANSWERED, Failure.NONE, 1, 10, 20, 0, 0, seconds, extra)


class Provider:
    """Episodes generate for `busy_s`, ask once, and end when they were served; `per_second` are."""

    def __init__(self, per_second, busy_s=5, slots=40, step=4, wait_s=20.0):
        self.per_second, self.busy_s, self.slots = per_second, busy_s, slots
        self.admission = Admission(AdmissionSettings(quota_wait_s=wait_s), step, SIBLINGS)
        self.generating, self.queue = deque(), deque()  # (when it asks, when it began, group)
        self.held, self.served, self.now, self.next_group = {}, 0, 0.0, 0
        self.idle_s = 0  # seconds in which the provider could have served more

    def second(self, trained):
        """One second, in which up to `trained` groups leave the pipeline when they have ended."""
        while len(self.held) < self.slots and self.admission.may_begin(len(self.held), kv_full=False):
            self.admission.begun(self.next_group)
            self.held[self.next_group] = SIBLINGS
            for i in range(SIBLINGS):  # not all at once
                self.generating.append((self.now + self.busy_s + i % 3, self.now, self.next_group))
            self.next_group += 1
        while self.generating and self.generating[0][0] <= self.now:
            self.queue.append(self.generating.popleft())
        self.idle_s += len(self.queue) < self.per_second
        for _ in range(min(len(self.queue), self.per_second)):
            _, began, group = self.queue.popleft()
            self.served += 1
            self.admission.ended(group, summary(self.now - began, self.now - began - self.busy_s))
            self.held[group] -= 1
            if not self.held[group]:
                self.admission.over(group)
        for group in [group for group, left in self.held.items() if not left][:trained]:
            del self.held[group]
        self.now += 1
        load = EndpointLoad("paid", waiting=len(self.queue), served=self.served)
        self.admission.look(self.now, LoadSample((load,)))

    def seconds(self, n, trained=40):
        parked = []
        for _ in range(n):
            self.second(trained)
            parked.append(len(self.queue))
        return parked


def test_where_nothing_waits_every_free_slot_is_used():
    world = Provider(per_second=1000)
    for _ in range(60):
        world.second(trained=40)
        assert world.admission.bound == math.inf
        assert not world.admission.hold


def test_at_a_quota_only_as_many_are_parked_as_it_serves_in_the_time_that_they_may_wait():
    world, free = Provider(per_second=4), Provider(per_second=4, wait_s=0.0)
    parked, without = world.seconds(400)[200:], free.seconds(400)[200:]
    assert min(without) > 250  # all that the slots allow
    assert max(parked) <= 1.25 * 4 * 20
    assert world.admission.hold == "quota"


def test_the_quota_itself_is_used_as_if_nothing_was_held_back():
    world, free = Provider(per_second=4), Provider(per_second=4, wait_s=0.0)
    world.seconds(400)
    free.seconds(400)
    assert world.served >= free.served - 4
    assert world.idle_s <= free.idle_s + 1


def test_the_groups_of_the_next_step_always_begin():
    world = Provider(per_second=4)
    world.seconds(100)
    world.per_second = 0  # nothing is served any more, and the bound falls to nothing
    world.seconds(60, trained=0)
    assert world.admission.bound < SIBLINGS
    for group in list(world.held):
        world.admission.over(group)
    world.held.clear()
    world.second(trained=0)
    assert len(world.held) == 4


def test_a_provider_that_allows_more_again_is_soon_used_in_full():
    world = Provider(per_second=4)
    world.seconds(200)
    world.per_second = 1000
    world.seconds(20)
    before = world.served
    world.seconds(30)
    assert len(world.held) == 40 or world.served - before > 30 * 20
    assert not world.admission.hold
    world.seconds(60)
    assert world.admission.bound == math.inf


def test_what_another_job_takes_of_the_quota_is_noticed():
    world = Provider(per_second=8)
    world.seconds(150)
    world.per_second = 4
    assert max(world.seconds(200)[100:]) <= 1.25 * 4 * 20


def test_no_group_begins_while_every_kv_cache_is_full_beyond_those_of_the_next_step():
    admission = Admission(AdmissionSettings(), 4, SIBLINGS)
    assert admission.may_begin(3, kv_full=True)
    assert not admission.may_begin(4, kv_full=True)
    assert admission.hold == "kv"
    assert admission.may_begin(4, kv_full=False)
    assert admission.hold == ""


def test_workers_that_are_gone_or_silent_hold_nothing_back():
    world = Provider(per_second=4)
    world.seconds(100)
    world.admission.look(world.now + 1, LoadSample())
    assert world.admission.may_begin(39, kv_full=False)
    world.admission.look(world.now + 2, LoadSample((EndpointLoad("paid", waiting=50, served=0),)))
    assert world.admission.bound >= 0


def steady(seconds, served_per_s, requests_per_episode, waiting=500):
    """An endpoint at its limit, as `served_per_s` requests of episodes that need several each."""
    admission, served, group = Admission(AdmissionSettings(quota_wait_s=20.0), 4, SIBLINGS), 0, 0
    for now in range(seconds):
        for _ in range(served_per_s // requests_per_episode):
            admission.begun(group)
            admission.ended(group, summary(37.0, 30.0))
            admission.over(group)
            group += 1
        served += served_per_s
        admission.look(float(now), LoadSample((EndpointLoad("paid", waiting=waiting, served=served),)))
    return admission, served


def test_the_bound_is_what_the_rate_serves_in_the_time_that_an_episode_has():
    admission, _ = steady(300, served_per_s=6, requests_per_episode=3)
    assert abs(admission.bound - 6 / 3 * (7 + 20)) < 2


def test_of_several_endpoints_the_tightest_decides():
    admission, served = steady(300, served_per_s=6, requests_per_episode=3)
    free = EndpointLoad("free", in_provider=9, served=10**6)
    admission.look(300.0, LoadSample((free, EndpointLoad("paid", waiting=500, served=served + 6))))
    assert abs(admission.bound - 54) < 4


def test_while_nobody_asks_an_endpoint_that_was_down_what_is_under_way_may_double():
    admission, served = steady(300, served_per_s=6, requests_per_episode=3)
    down = LoadSample((EndpointLoad("paid", waiting=40, served=served),))
    for now in range(300, 400):
        admission.look(float(now), down)
    assert admission.bound < 1
    for group in range(6):
        admission.begun(("still generating", group))
    admission.look(400.0, LoadSample((EndpointLoad("paid", waiting=0, served=served),)))
    assert admission.bound == 2 * 6 * SIBLINGS


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 500), st.floats(0.01, 30)), max_size=40),
    st.integers(1, 6), st.integers(0, 50),
)  # fmt: skip
def test_whatever_is_seen_the_floor_holds_and_the_books_balance(looks, step, groups):
    admission, now, served = Admission(AdmissionSettings(), step, SIBLINGS), 0.0, 0
    for number, (waiting, more, seconds) in enumerate(looks):
        now += seconds
        served += more
        admission.begun(number)
        if number % 3:
            admission.ended(number, summary(10.0, 4.0) if number % 2 else None)
        admission.look(now, LoadSample((EndpointLoad("a", waiting=waiting, served=served),)))
        assert admission.bound >= 0
        assert admission.may_begin(groups, kv_full=True) == (groups < step)
    for number in range(len(looks)):
        admission.over(number)
    assert admission.episodes == 0
