"""Every question once per epoch, in an order of the seed's, also across restarts and changed datasets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.grpo.prompts_cursor import CursorState, PromptsCursor, epoch_order

ids = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=20, unique=True)


def resumed(cursor, names):
    return PromptsCursor.restore(names, CursorState.from_json(json.loads(json.dumps(cursor.snapshot().to_json()))))


@given(ids, st.integers(0, 2**32), st.integers(1, 3))
def test_each_epoch_asks_every_question_once(names, seed, epochs):
    cursor = PromptsCursor(names, seed)
    for _ in range(epochs):
        assert sorted(cursor.next() for _ in names) == sorted(names)


@given(ids, st.integers(0, 100), st.integers(0, 50), st.integers(1, 30))
def test_a_restart_at_any_point_changes_nothing(names, seed, before, after):
    straight, stopped = PromptsCursor(names, seed), PromptsCursor(names, seed)
    for _ in range(before):
        assert straight.next() == stopped.next()
    stopped = resumed(stopped, names)
    assert [straight.next() for _ in range(after)] == [stopped.next() for _ in range(after)]


@given(ids, st.integers(0, 100), st.randoms())
def test_the_order_does_not_depend_on_how_the_rows_came(names, seed, random):
    shuffled = random.sample(names, len(names))
    assert epoch_order(names, seed, 0) == epoch_order(shuffled, seed, 0)


def test_seeds_and_epochs_have_orders_of_their_own():
    names = [str(i) for i in range(50)]
    orders = {tuple(epoch_order(names, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(ids, st.data())
def test_rows_that_were_added_or_removed_meanwhile_do_not_repeat_any(names, data):
    cursor = PromptsCursor(names, 0)
    asked = [cursor.next() for _ in range(data.draw(st.integers(0, len(names) - 1)))]
    gone = data.draw(st.sampled_from(names))
    now = [n for n in names if n != gone] + ["an added one"]
    cursor = resumed(cursor, now)
    rest = [cursor.next() for _ in range(len(now) - cursor.asked_this_epoch)]
    assert sorted(rest) == sorted(set(now) - set(asked))


def test_what_was_given_back_is_asked_first_and_not_for_ever():
    cursor = PromptsCursor(["a", "b", "c"], 0)
    first = cursor.next()
    assert cursor.give_back(first, at_most=2)
    assert cursor.next() == first
    assert cursor.give_back(first, at_most=2)
    cursor = resumed(cursor, ["a", "b", "c"])
    assert cursor.next() == first
    assert not cursor.give_back(first, at_most=2)
    assert cursor.next() != first


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="no question"):
        PromptsCursor([], 0)
    with pytest.raises(ValueError, match="more than once"):
        PromptsCursor(["a", "a"], 0)
    with pytest.raises(ValueError, match="not one of"):
        PromptsCursor(["a"], 0).give_back("b", 1)
