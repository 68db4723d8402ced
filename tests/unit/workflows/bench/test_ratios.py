"""Ratios are of neighbours, so that a slow minute slows both sides of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from workflows.bench.processes import between, role_of
from workflows.bench.ratios import Pass, Spread, paired, shares, steady_rate
from workflows.bench.rollout import Round, document_of

speeds = st.lists(st.floats(1.0, 1e5), min_size=1, max_size=9)


@given(speeds, st.floats(0.1, 10.0))
def test_a_ratio_does_not_see_what_slows_both_sides(values, factor):
    slowed = [value * factor for value in values]
    found = paired(slowed, values)
    assert found.median == pytest.approx(factor)
    assert found.low == pytest.approx(found.high)


def test_the_median_is_of_the_pairs_ratios_and_not_a_ratio_of_medians():
    assert paired([10.0, 90.0, 8.0], [10.0, 100.0, 16.0]) == Spread(0.9, 0.5, 1.0, 3)


def test_unpaired_passes_and_no_passes_have_no_ratio():
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])


def test_the_steady_rate_leaves_the_tail_out():
    ended = [(1.0, 10), (2.0, 20), (3.0, 5), (9.0, 5)]
    assert steady_rate(ended, 0.0, 3.0) == pytest.approx(35 / 3)
    assert steady_rate(ended, 3.0, 3.0) == 0.0


def test_shares_say_what_nobody_claimed_as_waiting():
    assert shares({"engine": 6.0, "tools": 3.0}, 10.0) == pytest.approx({"engine": 0.6, "tools": 0.3, "waiting": 0.1})
    assert shares({"engine": 1.0}, 0.0) == {"engine": 0.0, "waiting": 0.0}


def test_processor_time_is_told_by_role():
    assert role_of("ray::BenchSampler.run") == "sampler"
    assert role_of("VLLM::EngineCore") == "engine core"
    assert role_of("/site-packages/ray/core/src/ray/raylet/raylet --x") == "ray"
    assert role_of("bash") == "other"
    assert between({"ray": 1.0, "search": 2.0}, {"ray": 1.5, "search": 2.001, "reward": 0.2}) == {
        "ray": 0.5,
        "reward": 0.2,
    }


def a_round(rollout_s: float, raw_s: float, failed: int = 0) -> Round:
    sides = [Pass(seconds, 4, 100, 900, 50.0, {"ray": seconds}) for seconds in (rollout_s, raw_s)]
    return Round(sides[0], sides[1], {"engine": 0.9, "waiting": 0.1}, failed)


def test_a_document_has_the_ratio_of_the_passes_and_both_speeds():
    document = document_of({}, [a_round(2.0, 1.0), a_round(1.0, 0.9), a_round(1.0, 0.8)])
    assert document["ratio"] == pytest.approx({"median": 0.8, "low": 0.5, "high": 0.9, "n": 3})
    assert document["rollout"]["sampled_per_s"]["median"] == pytest.approx(100.0)
    assert document["raw"]["total_per_s"]["high"] == pytest.approx(1000 / 0.8)
    assert document["rollout"]["cpu_seconds"] == {"ray": 1.0}


def test_nothing_is_measured_when_episodes_were_spoilt():
    with pytest.raises(UserError, match="3 episodes failed"):
        document_of({}, [a_round(1.0, 1.0, failed=3)])
