"""The limiter against the gate that it has to please: a provider's own GCRA."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.quota.limiter import Gcra

RATES = st.floats(0.1, 500)
BURSTS = st.integers(1, 20)


def refusals(arrivals: list[float], per_second: float, burst: int) -> int:
    """How many of `arrivals` (seconds, in order) a provider with this GCRA refuses."""
    tat, refused = float("-inf"), 0
    for at in arrivals:
        if at < tat - (burst - 1) / per_second - 1e-9:
            refused += 1
        else:
            tat = max(at, tat) + 1 / per_second
    return refused


def granted(limiter: Gcra, asked: list[float]) -> list[float]:
    """The moments at which those who ask at `asked` are let through, each as early as possible, in order."""
    now, moments = 0.0, []
    for at in sorted(asked):
        now = limiter.open_at(max(now, at))
        limiter.take(now)
        moments.append(now)
    return moments


@given(RATES, BURSTS, st.lists(st.floats(0, 10), max_size=60))
def test_what_arrives_as_it_was_granted_is_never_refused(rate, burst, asked):
    assert refusals(granted(Gcra(rate, burst), asked), rate, burst) == 0


@given(RATES, BURSTS, st.floats(0, 0.5), st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), max_size=60))
def test_what_is_late_by_at_most_the_jitter_is_never_refused(rate, burst, jitter, asked):
    moments = granted(Gcra(rate, burst, jitter), [at for at, _ in asked])
    arrivals = sorted(at + jitter * late for at, (_, late) in zip(moments, asked, strict=True))
    assert refusals(arrivals, rate, burst) == 0


@given(RATES, BURSTS, st.lists(st.floats(0, 10), max_size=60), st.floats(0.01, 5))
def test_no_window_of_any_length_holds_more_than_the_bound(rate, burst, asked, width):
    moments = granted(Gcra(rate, burst), asked)
    for start in moments:
        inside = sum(start <= at < start + width for at in moments)
        assert inside <= burst + width * rate + 1e-6


@given(RATES, BURSTS)
def test_who_asks_without_pause_gets_the_whole_rate(rate, burst):
    moments = granted(Gcra(rate, burst), [0.0] * 200)
    assert 199 / (moments[-1] - moments[0]) >= rate * 0.999


def test_jitter_costs_tolerance_first_and_rate_only_where_there_is_too_little_of_it():
    assert Gcra(50, 5, 0.05).interval == pytest.approx(0.02)
    assert Gcra(50, 5, 0.05).tolerance == pytest.approx(0.03)
    assert Gcra(1, 1, 0.05).interval == pytest.approx(1.05)
    assert Gcra(1, 1, 0.05).tolerance == 0


def test_after_a_restart_the_whole_burst_is_taken_for_used():
    fresh, restarted = Gcra(10, 5), Gcra(10, 5)
    restarted.forget_burst(100.0)
    assert fresh.open_at(100.0) == 100.0
    assert restarted.open_at(100.0) == pytest.approx(100.1)


def test_taking_too_early_is_a_mistake_of_the_caller():
    limiter = Gcra(1, 1)
    limiter.take(0.0)
    with pytest.raises(ValueError, match="conform"):
        limiter.take(0.5)


@pytest.mark.parametrize(("rate", "burst", "jitter"), [(0, 1, 0), (-1, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_a_limiter_without_sense_is_refused(rate, burst, jitter):
    with pytest.raises(ValueError, match="positive rate"):
        Gcra(rate, burst, jitter)
