"""What a person reads when a tool was refused for good: which budget, what the rest of the run needs, what to do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.quota.settings import BudgetSettings, QuotaSettings
from actors.search.settings import ProviderSettings, SearchSettings
from actors.search.store.settings import Mode
from workflows.grpo.refusals import Done, Pace, SpentBudget, advice, pace, rounded_up, spent_budgets, told
from workflows.grpo.settings import GrpoSettings

WORLD = "tests.unit.actors.search.search_world"
TEN_STEPS = GrpoSettings(steps=10, groups_per_step=4, group_size=8)
START = Done(0, 0, 0)
REFUSAL = "text search failed (budget): serper: the budget of 300 requests a day (per_day.requests) is spent"


def spending(**units):
    amounts = {"requests": 0.0, "tokens": 0.0, "usd": 0.0, **units}
    return {"day": amounts, "month": amounts}


def endpoint(name, usd_per_call=0.0, **quota):
    return ProviderSettings(
        path=f"{WORLD}:Sentences", name=name, usd_per_call=usd_per_call, quota=QuotaSettings(**quota)
    )


# --- how far the run is ---------------------------------------------------------------------------------------


def test_groups_that_wait_for_training_need_no_more_searches():
    assert pace(START, Done(6 * 8, 6, 6), TEN_STEPS) == Pace(episodes=48, per_step=32.0, left=8.5)


def test_groups_that_were_dropped_make_a_step_take_more_episodes():
    assert pace(START, Done(96, 8, 12), TEN_STEPS).per_step == 32 * 12 / 8


def test_what_an_earlier_part_did_counts_for_the_steps_that_are_left_and_not_for_the_pace():
    assert pace(Done(960, 20, 120), Done(960 + 64, 28, 128), TEN_STEPS) == Pace(64, 32.0, 3.0)


def test_without_a_whole_group_the_episodes_that_ended_set_the_pace():
    assert pace(START, Done(5, 0, 0), TEN_STEPS) == Pace(5, 32.0, 10.0)


def test_a_run_that_has_all_its_groups_has_no_step_left():
    assert pace(START, Done(9, 41, 41), TEN_STEPS).left == 0.0


# --- which budgets are spent ----------------------------------------------------------------------------------


def test_a_budget_is_spent_when_the_next_request_has_no_room():
    search = SearchSettings(
        text=[endpoint("one", per_day=BudgetSettings(requests=300))],
        image=[endpoint("two", 0.25, per_month=BudgetSettings(usd=5.0, requests=100))],
        readers=[endpoint("three", tokens_per_call=1000, per_day=BudgetSettings(tokens=50_000))],
    )
    before = {name: spending(requests=10, usd=1.0, tokens=500) for name in ("one", "two", "three")}
    now = {
        "one": spending(requests=300),
        "two": spending(requests=16, usd=4.0),
        "three": spending(requests=60, tokens=49_000),
    }
    assert spent_budgets(search, before, now) == [SpentBudget("one", "day", "requests", 300, 290)]
    now = {
        "one": spending(requests=299),
        "two": spending(requests=16, usd=4.76),
        "three": spending(requests=60, tokens=49_001),
    }
    assert spent_budgets(search, before, now) == [
        SpentBudget("two", "month", "usd", 4.76, 4.76 - 1.0),
        SpentBudget("three", "day", "tokens", 49_001, 48_501),
    ]


def test_an_endpoint_whose_broker_does_not_answer_is_left_out():
    search = SearchSettings(text=[endpoint("one", per_day=BudgetSettings(requests=3))])
    assert spent_budgets(search, {}, {"one": spending(requests=3)}) == []
    assert spent_budgets(search, {"one": spending()}, {}) == []


def test_two_tools_at_one_endpoint_are_one_budget():
    both = endpoint("one", per_day=BudgetSettings(requests=3))
    search = SearchSettings(text=[both], image=[both])
    assert len(spent_budgets(search, {"one": spending()}, {"one": spending(requests=3)})) == 1


def test_a_day_that_began_in_the_middle_hides_nothing_of_what_was_used():
    search = SearchSettings(text=[endpoint("one", per_day=BudgetSettings(requests=100))])
    before = {"one": {"day": spending(requests=90)["day"], "month": spending(requests=990)["month"]}}
    now = {"one": {"day": spending(requests=100)["day"], "month": spending(requests=1290)["month"]}}
    assert spent_budgets(search, before, now) == [SpentBudget("one", "day", "requests", 100, 300)]


# --- the sentence ---------------------------------------------------------------------------------------------


def test_the_estimate_is_what_the_episodes_took_times_the_steps_that_are_left():
    spent = SpentBudget("serper", "day", "requests", 300, 240)
    assert advice(spent, Pace(120, 32.0, 5.5)) == (
        "A step takes about 64 requests of serper, so the 5.5 steps that are left need about 360 more:"
        " start again with per_day.requests at 660, or when a new day has begun (UTC)"
    )


def test_few_requests_a_step_are_no_whole_number():
    said = advice(SpentBudget("serper", "day", "requests", 24, 21), Pace(60, 10.0, 9.5))
    assert "about 3.5 requests of serper, so the 9.5 steps that are left need about 34 more" in said


def test_money_is_told_in_money():
    spent = SpentBudget("lens", "month", "usd", 5.0, 3.0)
    assert advice(spent, Pace(100, 64.0, 2.0)) == (
        "A step takes about 2 USD of lens, so the 2 steps that are left need about 3.9 more:"
        " start again with per_month.usd at 8.9, or when a new month has begun (UTC)"
    )


@pytest.mark.parametrize(("used", "episodes"), [(0.0, 12), (7.0, 0)])
def test_where_nothing_was_learned_about_its_use_no_figure_is_made_up(used, episodes):
    said = advice(SpentBudget("serper", "day", "requests", 300, used), Pace(episodes, 32.0, 5.0))
    assert "not known yet" in said
    assert "per_day.requests" in said
    assert not any(letter.isdigit() for letter in said)


def test_a_spent_budget_is_told_with_the_refusal_and_what_to_do():
    said = told(REFUSAL, [SpentBudget("serper", "day", "requests", 300, 240)], Pace(120, 32.0, 5.5), Mode.LIVE)
    assert said.startswith(f"{REFUSAL}. A step takes about 64 requests of serper")
    assert said.endswith("; the run continues from its checkpoint.")


def test_a_spent_budget_that_another_endpoint_made_up_for_is_not_told():
    serper, lens = (SpentBudget(name, "day", "requests", 300, 240) for name in ("serper", "lens"))
    refusal = "image search failed (bad_key): brave: BRAVE_API_KEY is not set"
    assert "A step takes" not in told(refusal, [serper], Pace(120, 32.0, 5.5), Mode.LIVE)
    both = told(REFUSAL, [lens, serper], Pace(120, 32.0, 5.5), Mode.LIVE)
    assert "of serper" in both
    assert "lens" not in both


def test_a_replay_that_lacks_a_call_names_the_modes_that_help():
    refusal = "text search failed (not_recorded): not recorded: text_search {}"
    said = told(refusal, [], Pace(1, 1.0, 1.0), Mode.REPLAY)
    assert "search.cassette.mode=replay_or_live" in said


def test_a_bad_key_is_for_a_person_to_see_to():
    said = told("text search failed (bad_key): serper: SERPER_API_KEY is not set", [], Pace(1, 1.0, 1.0), Mode.LIVE)
    assert said.endswith("is not set. See to it, and start again; the run continues from its checkpoint.")


@given(st.floats(1e-4, 1e9), st.booleans())
def test_a_figure_is_rounded_up_by_less_than_a_tenth_or_to_a_whole_number(value, whole):
    up = rounded_up(value, whole=whole)
    assert up >= value * (1 - 1e-6)
    assert up <= max(value * 1.1, math.ceil(value) if whole else 0.0) + 1e-6
    assert up == int(up) or not whole


@given(st.integers(1, 10_000), st.integers(1, 5000), st.floats(1, 1000), st.floats(0.1, 100))
def test_the_budget_that_is_named_covers_what_was_spent_and_what_is_needed(used, episodes, per_step, left):
    said = advice(SpentBudget("e", "day", "requests", used, used), Pace(episodes, per_step, left))
    named = int(said.partition("per_day.requests at ")[2].partition(",")[0])
    assert named >= used + used / episodes * per_step * left - 1e-3
