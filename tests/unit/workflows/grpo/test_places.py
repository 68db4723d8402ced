"""The sums over a fleet are those of its live samplers, whatever came and went."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from workflows.grpo.places import FleetLimits, Places
from workflows.grpo.ports import SamplerLoad
from workflows.grpo.seats import Seat, Seating

LIMITS = FleetLimits(8, 2, 60.0, 60.0, 60.0, 10.0, kv_used=0.9)
EVENTS = ("began", "ended", "fenced", "live", "tools", "full", "rests")


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 2), st.integers(0, 5)), max_size=60))
def test_sums_are_those_of_the_live_samplers_after_every_change(events):
    places = Places(LIMITS)
    all_of_them = [places.add(SimpleNamespace(name=f"sampler-{i}")) for i in range(3)]
    for event, which, number in events:
        place = all_of_them[which]
        if event in ("began", "ended"):
            getattr(places, event)(place, number)
        elif event == "rests":
            places.rests(place)
        elif event in ("tools", "full"):
            seen = SamplerLoad(in_tools=number if event == "tools" else 0, kv_used=1.0 if event == "full" else 0.0)
            places.told(place, seen, 0.0)
        else:
            places.set(place, fenced="died" if event == "fenced" else "")
        live = [one for one in all_of_them if not one.fenced]
        assert places.live == len(live)
        assert places.running == sum(len(one.running) for one in live)
        assert places.in_tools == sum(min(len(one.running), one.seen.in_tools) for one in live)


def test_a_seat_that_was_removed_is_given_to_nobody_though_it_is_opened():
    seating, seat = Seating(group_size=1), Seat("sampler-0", 4)
    seating.add(seat)
    seating.remove(seat)
    seating.set_open(seat, True)
    assert (seat.open, seating.take()) == (False, None)
