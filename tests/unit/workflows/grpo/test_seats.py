"""Who sits where: siblings together, the roomiest sampler first, every place given back once."""

from hypothesis import given
from hypothesis import strategies as st

from workflows.grpo.seats import Seat, Seating


def seating(limits, group_size=4):
    made, seats = Seating(group_size), [Seat(f"s{i}", limit) for i, limit in enumerate(limits)]
    for seat in seats:
        made.add(seat)
        made.set_open(seat, True)
    return made, seats


def test_siblings_sit_on_one_sampler_and_groups_on_different_ones():
    s, _ = seating([16, 16])
    homes = {group: {s.take(group).name for _ in range(4)} for group in range(4)}
    assert all(len(names) == 1 for names in homes.values())
    assert sorted(name for names in homes.values() for name in names) == ["s0", "s0", "s1", "s1"]


def test_a_group_waits_for_a_sampler_with_room_for_all_of_it():
    s, seats = seating([6, 6])
    first, second = [s.take("a") for _ in range(4)], [s.take("b") for _ in range(4)]
    assert s.take("c") is None
    s.give_back(first[0])
    assert s.take("c") is None
    assert s.take(None, {"s1"}) is seats[0]  # an episode that is played again needs one place
    for seat in (*first[1:], second[0]):
        s.give_back(seat)
    assert {s.take("c").name for _ in range(4)} == {"s0"}


def test_places_kept_for_siblings_that_never_come_are_free_when_the_group_ends():
    s, seats = seating([4, 4])
    s.take("a")
    assert seats[0].load == 4
    s.end_group("a")
    assert seats[0].load == 1
    s.end_group("a")
    s.end_group("unknown")
    assert seats[0].load == 1


def test_siblings_go_elsewhere_when_their_sampler_is_closed():
    s, seats = seating([8, 8])
    s.take("a")
    s.set_open(seats[0], False)
    assert [s.take("a").name for _ in range(3)] == ["s1"] * 3
    s.end_group("a")
    assert [seat.load for seat in seats] == [1, 3]


def test_a_group_larger_than_any_sampler_is_spread():
    s, _ = seating([2, 2])
    assert [s.take("a").name for _ in range(4)] == ["s0", "s1", "s0", "s1"]
    assert s.take("a") is None


def test_with_one_sampler_a_group_need_not_wait_for_room_for_all_of_it():
    s, seats = seating([6])
    for _ in range(4):
        s.take("a")
    assert s.take("b") is seats[0]


def test_what_failed_is_avoided_unless_there_is_nothing_else():
    s, seats = seating([3, 1])
    assert s.take(None, {"s0"}) is seats[1]
    assert s.take(None, {"s0"}) is seats[0]


def test_a_sampler_whose_limit_falls_is_given_nothing_until_enough_has_ended():
    s, seats = seating([4])
    taken = [s.take() for _ in range(4)]
    s.set_limit(seats[0], 2)
    s.give_back(taken[0])
    s.give_back(taken[1])
    assert s.take() is None
    s.give_back(taken[2])
    assert s.take() is seats[0]


@given(st.data(), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 5))
def test_whatever_happens_no_place_is_lost_or_given_twice(data, limits, group_size):
    s, seats = seating(limits, group_size)
    running, asked = [], {}
    for _ in range(60):
        verb = data.draw(st.sampled_from(["take", "take", "take", "again", "back", "end", "close", "open", "limit"]))
        if verb == "take":
            group = data.draw(st.integers(0, 5))
            if asked.get(group, 0) < group_size and (seat := s.take(group)):
                asked[group] = asked.get(group, 0) + 1
                running.append(seat)
                assert seat.open
        elif verb == "again" and (seat := s.take(None, {data.draw(st.sampled_from(seats)).name})):
            running.append(seat)
        elif verb == "back" and running:
            s.give_back(running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif verb == "end" and asked:
            group = data.draw(st.sampled_from(sorted(asked)))
            s.end_group(group)
            del asked[group]
        elif verb in ("close", "open"):
            s.set_open(data.draw(st.sampled_from(seats)), verb == "open")
        elif verb == "limit":
            s.set_limit(data.draw(st.sampled_from(seats)), data.draw(st.integers(1, 12)))
        for seat in seats:
            assert seat.load >= running.count(seat)
    for group in list(asked):
        s.end_group(group)
    for seat in seats:
        assert seat.load == running.count(seat)
    for seat in running:
        s.give_back(seat)
    for seat, limit in zip(seats, limits, strict=True):
        assert seat.load == 0
        s.set_limit(seat, limit)
        s.set_open(seat, True)
    assert sum(1 for _ in iter(s.take, None)) == sum(limits)


def test_the_book_of_free_places_does_not_grow_with_episodes():
    s, _ = seating([8, 8, 8])
    for _ in range(1000):
        s.give_back(s.take())
    assert sum(map(len, s._by_room.values())) == 3
