"""The front of the queue; that it picks what the rule says is searched for counter-examples in test_work_buffer.py."""

from workflows.grpo.front import SLACK, Front


def front_of(groups, batch, window):
    front = Front(batch, window)
    for group in range(groups):
        front.admit(group)
    return front


def finish(front, *groups):
    for group in groups:
        front.finish(group)


def test_a_batch_is_the_oldest_finished_groups_and_tells_whom_they_overtake():
    front = front_of(6, batch=2, window=3)
    finish(front, 4, 1, 3)
    assert front.is_full()
    assert front.pick() == ([1, 3], [0, 2])


def test_behind_as_many_unfinished_groups_as_the_window_has_nothing_is_picked():
    front = front_of(6, batch=2, window=2)
    finish(front, 4, 5)
    assert not front.is_full()
    finish(front, 0)
    assert not front.is_full(), "1 and 2 still fill the window"
    finish(front, 2)
    assert front.is_full()
    assert front.pick() == ([0, 2], [1])


def test_a_group_that_ends_within_the_front_makes_room_in_its_window():
    front = front_of(4, batch=2, window=1)
    finish(front, 1, 2)
    assert not front.is_full()
    front.end(0)
    assert front.is_full()
    assert front.pick() == ([1, 2], [])


def test_a_finished_group_that_is_filtered_is_no_pick_any_more():
    front = front_of(3, batch=2, window=3)
    finish(front, 0, 1)
    assert front.is_full()
    front.end(1)
    assert not front.is_full()
    finish(front, 2)
    assert front.pick() == ([0, 2], [])


def test_what_is_taken_leaves_the_rest_in_order():
    front = front_of(5, batch=2, window=2)
    finish(front, 1, 2)
    picks, overtaken = front.pick()
    front.take(picks)
    assert (picks, overtaken, front.finished) == ([1, 2], [0], 0)
    finish(front, 3, 0)
    assert front.is_full()
    assert front.pick() == ([0, 3], [])


def test_groups_that_ended_do_not_pile_up_before_the_next_batch():
    front = front_of(1, batch=2, window=2)
    for group in range(1, 2000):
        front.admit(group)
        front.finish(group)
        front.end(group)
    assert len(front._queue) <= 2 + SLACK + 1
