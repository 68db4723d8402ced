"""The rules of the quota: order, bounds, budgets to the last request, and what a crash forgets (nothing)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.quota.budgets import Spend
from actors.search.quota.core import Ending, Grant, QuotaCore, Reason, Refusal, Settlement
from actors.search.quota.settings import BudgetSettings, QuotaSettings

NOON = 1_700_000_000.0 - 1_700_000_000.0 % 86400 + 43200  # of a day in November 2023, UTC
DAY = 86400.0


def core_of(quota: QuotaSettings, usd_per_call: float = 0.0, now: float = NOON) -> QuotaCore:
    core = QuotaCore(quota, now, usd_per_call)
    journal(core, now)
    return core


def journal(core: QuotaCore, now: float) -> dict | None:
    """Write what the core wants written, as a broker does; what was written last."""
    written = core.to_journal(now)
    if written is not None:
        core.journalled(written)
    return written


def leases(core: QuotaCore, now: float, wanted: int = 1) -> tuple[int, ...]:
    """Ask, again for the rest, and take what is open at once; () when even one would have to wait."""
    taken: tuple[int, ...] = ()
    while len(taken) < wanted:
        ticket = core.ask(now, wanted - len(taken))
        if isinstance(ticket, Refusal):
            assert taken, ticket
            break
        grants = [decided for decided in core.poll(now) if isinstance(decided, Grant)]
        core.withdraw(ticket)
        if not grants and journal(core, now) is None:
            break
        taken += grants[0].leases if grants else ()
    return taken


def end(core: QuotaCore, now: float, lease: int, ending=Ending.ANSWERED, **more) -> None:
    core.settle(now, Settlement(lease, ending, **more))


def test_leases_are_granted_in_the_order_of_asking():
    core = core_of(QuotaSettings(per_second=1, jitter=0))
    tickets = [core.ask(NOON, 1) for _ in range(3)]
    served = []
    for second in range(3):
        served += [grant.ticket for grant in core.poll(NOON + second) if isinstance(grant, Grant)]
    assert served == tickets


def test_who_asks_for_many_gets_what_is_open_and_lets_the_next_one_in():
    core = core_of(QuotaSettings(per_second=1, burst=3, jitter=0))
    many, one = core.ask(NOON, 100), core.ask(NOON, 1)
    first = list(core.poll(NOON))
    assert [(grant.ticket, len(grant.leases)) for grant in first if isinstance(grant, Grant)] == [(many, 3)]
    assert [grant.ticket for grant in core.poll(NOON + 1) if isinstance(grant, Grant)] == [one]


def test_the_core_says_when_it_will_grant_again_and_then_does():
    core = core_of(QuotaSettings(per_second=10, jitter=0))
    leases(core, NOON)
    core.ask(NOON, 1)
    assert list(core.poll(NOON)) == []
    wake = core.wake_at(NOON)
    assert wake == pytest.approx(NOON + 0.1, abs=1e-3)
    assert len(list(core.poll(wake))) == 1


def test_concurrency_bounds_what_is_in_flight_until_something_ends():
    core = core_of(QuotaSettings(concurrency=2))
    first = leases(core, NOON, 5)
    assert len(first) == 2
    assert leases(core, NOON) == ()
    end(core, NOON, first[0])
    assert len(leases(core, NOON)) == 1


def test_a_lease_that_nobody_settles_frees_its_slot_and_counts_as_spent():
    core = core_of(QuotaSettings(concurrency=1, lease_seconds=30, per_day=BudgetSettings(requests=10)))
    leases(core, NOON)
    assert leases(core, NOON + 29) == ()
    assert len(leases(core, NOON + 31)) == 1
    assert core.lost == 1
    assert core.left()["day"]["requests"] == 8


def test_a_spent_budget_is_refused_at_once_and_says_which_setting():
    core = core_of(QuotaSettings(per_day=BudgetSettings(requests=2)))
    for lease in leases(core, NOON, 2):
        end(core, NOON, lease)
    refusal = core.ask(NOON, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BUDGET
    assert "2 requests a day (per_day.requests)" in refusal.says


def test_who_already_waits_is_refused_when_the_budget_runs_out():
    core = core_of(QuotaSettings(per_day=BudgetSettings(requests=1)))
    (lease,) = leases(core, NOON)
    waiting = core.ask(NOON, 1)  # the lease under way may yet come back unused
    assert list(core.poll(NOON)) == []
    end(core, NOON, lease)
    assert [decided[0] for decided in core.poll(NOON) if not isinstance(decided, Grant)] == [waiting]


def test_a_lease_that_comes_back_unused_costs_nothing():
    core = core_of(QuotaSettings(per_day=BudgetSettings(requests=1)))
    (lease,) = leases(core, NOON)
    end(core, NOON, lease, Ending.UNUSED)
    assert len(leases(core, NOON)) == 1


def test_a_new_day_brings_a_new_budget_and_the_month_goes_on():
    core = core_of(QuotaSettings(per_day=BudgetSettings(requests=1), per_month=BudgetSettings(requests=2)))
    for day in range(2):
        (lease,) = leases(core, NOON + day * DAY)
        end(core, NOON + day * DAY, lease)
    refusal = core.ask(NOON + 2 * DAY, 1)
    assert isinstance(refusal, Refusal)
    assert "month" in refusal.says


def test_money_is_counted_by_what_was_really_used():
    core = core_of(QuotaSettings(per_day=BudgetSettings(usd=0.01)), usd_per_call=0.001)
    (lease,) = leases(core, NOON)
    end(core, NOON, lease, spend=Spend(1, 0, 9_500))
    refusal = core.ask(NOON, 1)
    assert isinstance(refusal, Refusal)
    assert "0.01 USD a day" in refusal.says


def test_after_a_429_nobody_is_served_before_the_time_that_was_asked_for_then_one_then_more():
    core = core_of(QuotaSettings())
    first = leases(core, NOON, 8)
    for lease in first:
        end(core, NOON, lease, Ending.THROTTLED, retry_after=7.0)
    assert leases(core, NOON + 6.9, 100) == ()
    (probe,) = leases(core, NOON + 7.1, 100)
    assert leases(core, NOON + 7.2, 100) == ()
    end(core, NOON + 7.3, probe)
    assert len(leases(core, NOON + 7.4, 100)) == 2


def test_refusals_without_a_time_make_the_pause_longer_each_time():
    core, now, pauses = core_of(QuotaSettings()), NOON, []
    for _ in range(4):
        (lease,) = leases(core, now)
        end(core, now, lease, Ending.THROTTLED)
        pauses.append(core.paused_for(now))
        now += pauses[-1] + 0.001
    assert pauses == pytest.approx([1, 2, 4, 8])


def test_the_circuit_opens_after_failures_in_a_row_and_a_probe_decides():
    core = core_of(QuotaSettings(failures_to_open=3, open_seconds=5))
    for lease in leases(core, NOON, 3):
        end(core, NOON, lease, Ending.FAILED)
    refusal = core.ask(NOON + 4, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OPEN
    (probe,) = leases(core, NOON + 5.1, 10)
    assert isinstance(core.ask(NOON + 5.2, 1), Refusal)  # while the probe is under way
    end(core, NOON + 5.3, probe, Ending.FAILED)
    assert isinstance(core.ask(NOON + 14, 1), Refusal)  # twice as long
    (probe,) = leases(core, NOON + 15.4)
    end(core, NOON + 15.5, probe)
    assert len(leases(core, NOON + 15.6, 10)) == 10


def test_success_between_failures_keeps_the_circuit_closed():
    core = core_of(QuotaSettings(failures_to_open=2))
    for _ in range(10):
        one, other = leases(core, NOON, 2)
        end(core, NOON, one, Ending.FAILED)
        end(core, NOON, other)
    assert core.closed_because(NOON) == ""


@pytest.mark.parametrize(("ending", "reason"), [(Ending.NO_KEY, Reason.NO_KEY), (Ending.NO_CREDIT, Reason.NO_CREDIT)])
def test_a_bad_key_and_a_spent_credit_close_the_endpoint_at_once(ending, reason):
    core = core_of(QuotaSettings(failures_to_open=100))
    (lease,) = leases(core, NOON)
    end(core, NOON, lease, ending)
    refusal = core.ask(NOON, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is reason


def test_a_probe_that_is_never_settled_does_not_close_the_endpoint_for_ever():
    core = core_of(QuotaSettings(failures_to_open=1, open_seconds=1, lease_seconds=10))
    (lease,) = leases(core, NOON)
    end(core, NOON, lease, Ending.FAILED)
    assert len(leases(core, NOON + 2)) == 1
    assert isinstance(core.ask(NOON + 3, 1), Refusal)
    assert len(leases(core, NOON + 13)) == 1


def test_nothing_is_granted_before_the_journal_covers_it():
    core = QuotaCore(QuotaSettings(per_day=BudgetSettings(requests=100)), NOON)
    core.ask(NOON, 1)
    assert list(core.poll(NOON)) == []
    journal(core, NOON)
    assert len(list(core.poll(NOON))) == 1


@pytest.mark.parametrize(
    ("bound", "each"),
    [
        (BudgetSettings(requests=100), {}),
        (BudgetSettings(tokens=100_000), {"tokens_per_call": 1000}),
        (BudgetSettings(requests=10_000, tokens=100_000), {"tokens_per_call": 1000}),
        (BudgetSettings(usd=0.1), {}),
    ],
    ids=["requests", "tokens", "both", "usd"],
)
def test_a_small_budget_is_claimed_in_small_blocks(bound, each):
    core = QuotaCore(QuotaSettings(per_month=bound, journal_block=64, **each), NOON, usd_per_call=0.001)
    written = core.to_journal(NOON)
    assert written is not None
    assert written["month"]["claimed"]["requests"] <= 4


def test_a_settlement_for_a_broker_before_the_restart_changes_nothing():
    quota = QuotaSettings(per_day=BudgetSettings(requests=10))
    before = core_of(quota)
    (old,) = leases(before, NOON)
    after = QuotaCore(quota, NOON + 1)
    journal(after, NOON + 1)
    (new,) = leases(after, NOON + 1)
    assert new != old
    end(after, NOON + 1, old)
    assert after.in_flight == 1


ENDINGS = st.sampled_from([Ending.ANSWERED, Ending.FAILED, Ending.UNUSED, Ending.UNDECIDED])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 5)),
        st.tuples(st.just("wait"), st.floats(0.001, 3.0)),
        st.tuples(st.just("end"), ENDINGS),
        st.tuples(st.just("crash"), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(STEPS, st.integers(1, 40), st.integers(0, 4), st.integers(1, 8))
def test_over_any_schedule_and_any_crash_no_budget_is_exceeded_and_nothing_spent_is_forgotten(
    steps, budget, concurrency, block
):
    quota = QuotaSettings(
        per_second=5,
        burst=3,
        concurrency=concurrency,
        per_month=BudgetSettings(requests=budget),
        journal_block=block,
        failures_to_open=10**6,
    )
    now, core, on_disk, held, sent = NOON, QuotaCore(quota, NOON), None, [], 0
    for what, value in [*steps, ("wait", 1.0)]:
        if what == "ask":
            core.ask(now, value)
        elif what == "wait":
            now += value
        elif what == "end" and held:
            ending = held.pop(0), value
            sent -= ending[1] is Ending.UNUSED
            end(core, now, ending[0], ending[1])
        elif what == "crash":
            core, held = QuotaCore(quota, now), []
            if on_disk is not None:
                core.restore(now, on_disk)
        for decided in core.poll(now):
            if isinstance(decided, Grant):
                held += decided.leases
                sent += len(decided.leases)
        on_disk = journal(core, now) or on_disk
        month = core.budgets.windows[1]
        assert sent <= budget
        assert month.spent.requests + core.budgets.reserved.requests >= sent
        assert not concurrency or core.in_flight <= concurrency


@given(st.lists(st.integers(1, 4), min_size=1, max_size=15), st.integers(1, 3))
def test_whoever_waits_is_served_in_the_end(wants, concurrency):
    core = core_of(QuotaSettings(per_second=20, burst=2, concurrency=concurrency))
    waiting = {core.ask(NOON, wanted) for wanted in wants}
    now, held = NOON, []
    for _ in range(10 * sum(wants)):
        for decided in core.poll(now):
            assert isinstance(decided, Grant)
            waiting.discard(decided.ticket)
            held += [(now + 0.1, lease) for lease in decided.leases]
        journal(core, now)
        moments = [at for at, _ in held[:1]] + [at for at in [core.wake_at(now)] if at is not None]
        if not waiting or not moments:
            break
        now = max(now, min(moments))
        while held and held[0][0] <= now:
            end(core, now, held.pop(0)[1])
    assert not waiting
