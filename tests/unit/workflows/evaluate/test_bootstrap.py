"""Intervals: what they hold, what they do not depend on, and when they are narrow."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workflows.evaluate.made_rows import row
from workflows.evaluate.bootstrap import intervals
from workflows.evaluate.document import arm_document
from workflows.evaluate.metrics import measure, over_seeds


def questions(rights, prefix="q", **more):
    return [row(question_id=f"{prefix}{i:04d}", exact_match=float(right), **more) for i, right in enumerate(rights)]


def width(seeds, name="exact_match", resamples=2000):
    low, high = intervals(seeds, 5, resamples)[name]
    return high - low


samples = st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 2), st.floats(0, 50))


def made(drawn):
    return [
        row(question_id=f"q{i // 2}", sample_index=i % 2, exact_match=float(right), text_searches=n,
            searches_ok=min(n, ok), seconds=seconds)
        for i, (right, n, ok, seconds) in enumerate(drawn)
    ]  # fmt: skip


@given(st.lists(samples, min_size=4, max_size=40))
@settings(max_examples=30)
def test_the_estimate_lies_in_its_interval_and_both_are_defined_together(drawn):
    rows = made(drawn)
    estimate, found = measure(rows, 5), intervals([rows], 5)
    for name, (low, high) in found.items():
        value = estimate[name]
        assert value is not None
        assert low - 1e-9 <= value <= high + 1e-9
    assert all(
        (estimate[name] is None) == (name not in found) for name in ("search_success", "exact_match", "recovery")
    )


@given(st.lists(samples, min_size=1, max_size=30), st.randoms())
@settings(max_examples=30)
def test_the_order_of_rows_changes_nothing(drawn, random):
    rows = made(drawn)
    shuffled = random.sample(rows, len(rows))
    assert arm_document([shuffled], 5) == arm_document([rows], 5)


@given(st.lists(samples, min_size=1, max_size=30), st.sampled_from(["infra", "data"]))
@settings(max_examples=30)
def test_spoilt_episodes_change_nothing_but_their_count(drawn, failure):
    rows = made(drawn)
    spoilt = [row(question_id=f"s{i}", failure=failure, exact_match=1.0, text_searches=3) for i in range(5)]
    assert intervals([rows + spoilt], 5) == intervals([rows], 5)
    assert measure(rows + spoilt, 5) == {**measure(rows, 5), "failed": 5}


@given(st.lists(st.booleans(), min_size=2, max_size=30))
@settings(max_examples=20)
def test_more_samples_of_the_same_questions_are_not_more_questions(rights):
    once = questions(rights)
    thrice = [row(question_id=r.question_id, sample_index=i, exact_match=r.exact_match) for r in once for i in range(3)]
    assert intervals([thrice], 5)["exact_match"] == pytest.approx(intervals([once], 5)["exact_match"])


def test_an_interval_halves_with_four_times_the_questions_and_is_that_of_the_binomial():
    few, many = questions([1, 0] * 50), questions([1, 0] * 200)
    assert width([few]) / width([many]) == pytest.approx(2, rel=0.15)
    assert width([few]) == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    import random

    draw, held = random.Random(0), 0
    for _ in range(100):
        low, high = intervals([questions([draw.random() < 0.7 for _ in range(60)])], 5, 200)["exact_match"]
        held += low <= 0.7 <= high
    assert 87 <= held <= 99


def test_where_all_agree_the_interval_is_the_value_itself():
    assert intervals([questions([1] * 20)], 5)["exact_match"] == (1, 1)


def test_seeds_that_agree_narrow_the_interval_as_more_questions_do():
    one = questions([1, 0, 1, 1] * 20)
    assert width([one] * 4) == pytest.approx(width([one]) / 2, rel=0.15)


def test_seeds_that_differ_widen_it_whatever_the_number_of_their_questions():
    good, bad, fair = questions([1] * 300), questions([0] * 300), questions([1, 0] * 150)
    assert intervals([good, bad, fair], 5)["exact_match"] == (0, 1)
    assert width([good, bad, fair]) > 5 * width([good + questions([0] * 300, "r") + questions([1, 0] * 150, "s")])


def test_every_seed_counts_alike_however_many_questions_it_has():
    seeds = [questions([1] * 400), questions([0] * 4)]
    assert over_seeds(seeds, 5)["exact_match"] == 0.5
    low, high = intervals(seeds, 5)["exact_match"]
    assert (low, high) == (0, 1)


def test_a_seed_in_which_a_measure_is_undefined_leaves_it_to_the_others():
    searched = questions([1, 0] * 10, text_searches=1, searches_ok=1)
    found = intervals([searched, questions([1] * 20)], 5)
    assert found["search_success"] == (1, 1)
    assert intervals([[], []], 5) == {}


def test_five_hundred_questions_with_all_their_groups_take_well_under_a_second():
    kinds = "abcdefg"
    rows = [
        row(question_id=str(i), kind=kinds[i % 7], label=("free", "required")[i % 2], tags=("x", "y")[: i % 3],
            exact_match=float(i % 3 > 0), text_searches=i % 4)
        for i in range(500)
    ]  # fmt: skip
    began = time.process_time()
    arm_document([rows], 5)
    assert time.process_time() - began < 2.0  # 0.2 s on an idle core
