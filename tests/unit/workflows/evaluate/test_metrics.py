"""What the numbers of an evaluation say and leave out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure
from tests.unit.workflows.evaluate.made_rows import QUESTION, episode, row
from workflows.evaluate.document import arm_document
from workflows.evaluate.metrics import behaviour, confusion, grouped, measure, over_seeds, ratios
from workflows.evaluate.rows import row_of

SEARCHED = {"image_searches": 1, "text_searches": 1, "searches_ok": 1, "first_tool": "image_search"}


def test_what_the_policy_failed_at_is_wrong_and_what_the_world_failed_at_is_not_counted():
    silent = row_of("sft", QUESTION, episode("", ending=Ending.OUT_OF_TURNS, failure=Failure.POLICY))
    spoilt = row_of("sft", QUESTION, episode("Ada Lune", ending=Ending.FAILED, failure=Failure.INFRA))
    measured = measure([row_of("sft", QUESTION, episode()), silent, spoilt], max_calls=5)
    assert (measured["episodes"], measured["failed"], measured["exact_match"]) == (2, 1, 0.5)
    assert measured["format_valid"] == 0.5


def test_both_search_ratios_of_the_paper():
    rows = [row(**SEARCHED), row(question_id="b"), row(question_id="c"), row(question_id="d")]
    measured = measure(rows, max_calls=2)
    assert measured["search_ratio"] == 0.25  # a quarter of the episodes search
    assert measured["search_ratio_allowed"] == 0.25  # two of eight calls
    assert measure(rows[:2], max_calls=5)["search_ratio_allowed"] == pytest.approx(0.2)
    assert (measured["searches"], measured["search_success"]) == (0.5, 0.5)


def test_what_is_undefined_is_none_and_not_nought():
    measured = measure([row(first_tools=())], 5)
    for name in ("search_success", "crop_share", "first_tool_right", "recovery", "evidence_hit", "judged"):
        assert measured[name] is None
    nothing = measure([], 5)
    assert (nothing["episodes"], nothing["exact_match"], nothing["seconds_p95"]) == (0, None, None)


def test_recovery_is_asked_of_those_whose_first_search_found_nothing_right():
    rows = [
        row(**SEARCHED, first_hit=True, exact_match=0.0),
        row(**SEARCHED, first_hit=False, exact_match=1.0),
        row(**SEARCHED, first_hit=False, exact_match=0.0),
        row(**SEARCHED, first_hit=False, exact_match=0.0),
        row(exact_match=1.0),  # did not search
    ]
    assert measure(rows, 5)["recovery"] == pytest.approx(1 / 3)


def test_the_first_tool_is_right_among_all_and_among_those_that_need_a_search():
    rows = [
        row(first_tools=("none",), first_tool="crop"),
        row(first_tools=("none",), first_tool="none"),
        row(first_tools=("crop", "image_search"), first_tool="crop"),
        row(first_tools=("text_search",), first_tool="text_search"),
        row(first_tools=(), first_tool="crop"),
    ]
    measured = measure(rows, 5)
    assert (measured["first_tool_right"], measured["first_tool_right_required"]) == (0.75, 1.0)
    assert confusion(rows) == {
        "crop or image_search": {"crop": 1},
        "none": {"crop": 1, "none": 1},
        "text_search": {"text_search": 1},
    }


def test_citations_are_asked_of_answers_and_their_support_of_citations():
    rows = [
        row(cited=True, cited_support=True),
        row(cited=True, cited_support=False),
        row(),
        row(),
        row(ending="gave_up"),
    ]
    measured = measure(rows, 5)
    assert (measured["cites"], measured["cited_support"]) == (0.5, 0.5)


def test_an_unknown_verdict_is_counted_and_never_wrong():
    rows = [row(judged=1.0, judge_says="yes"), row(judged=0.0, judge_says="no"), row(judge_says="no verdict")]
    measured = measure(rows, 5)
    assert (measured["judged"], measured["unjudged"]) == (0.5, 1)


def test_behaviour_is_right_or_wrong_with_or_without_a_search():
    rows = [row(exact_match=1.0), row(exact_match=1.0, **SEARCHED), row(exact_match=0.0), row(exact_match=0.0)]
    rows += [row(failure="infra")]
    assert behaviour(rows) == {
        "right_unsearched": 0.25, "right_searched": 0.25, "wrong_unsearched": 0.5, "wrong_searched": 0.0,
    }  # fmt: skip
    assert set(behaviour([]).values()) == {0}


def test_latency_has_a_median_and_a_tail():
    rows = [row(question_id=str(i), seconds=float(i)) for i in range(101)]
    measured = measure(rows, 5)
    assert (measured["seconds"], measured["seconds_p50"], measured["seconds_p95"]) == (50, 50, 95)


def test_over_seeds_values_are_averaged_where_they_are_defined_and_counts_are_summed():
    first = [row(**SEARCHED), row(question_id="b")]
    second = [row(exact_match=0.0)]
    both = over_seeds([first, second], 5)
    assert (both["episodes"], both["exact_match"], both["search_success"]) == (3, 0.5, 0.5)
    assert over_seeds([first], 5) == measure(first, 5)


episodes = st.builds(
    lambda id, sample, kind, right, images, crops, texts, ok, seconds, tags: row(
        question_id=f"q{id}", sample_index=sample, kind=kind, exact_match=float(right), image_searches=images,
        crops=min(crops, images), text_searches=texts, searches_ok=min(ok, images + texts), seconds=seconds, tags=tags,
    ),
    st.integers(0, 5), st.integers(0, 3), st.sampled_from("abc"), st.booleans(), st.integers(0, 2), st.integers(0, 2),
    st.integers(0, 3), st.integers(0, 5), st.floats(0, 100), st.lists(st.sampled_from("xy"), unique=True).map(tuple),
)  # fmt: skip


@given(st.lists(episodes, max_size=20), st.integers(1, 7))
def test_every_measure_is_the_ratio_of_two_sums_counted_by_hand(rows, max_calls):
    measured = measure(rows, max_calls)
    for name, ratio in ratios(max_calls).items():
        whole = sum(ratio.whole(one) for one in rows)
        expected = sum(ratio.part(one) for one in rows) / whole if whole else None
        assert measured[name] == (None if expected is None else pytest.approx(expected))
    if rows:
        assert measured["seconds"] == pytest.approx(sum(one.seconds for one in rows) / len(rows))
        searches = sum(one.image_searches + one.text_searches for one in rows)
        assert measured["search_ratio_allowed"] == pytest.approx(searches / (len(rows) * max_calls))


@given(st.lists(episodes, min_size=1, max_size=20))
def test_kinds_make_up_the_whole_and_a_row_counts_for_each_of_its_tags(rows):
    document = arm_document([rows], 5)
    whole, kinds = document["overall"], document["kinds"].values()
    assert sum(part["episodes"] for part in kinds) == whole["episodes"]
    total = sum(part["exact_match"] * part["episodes"] for part in kinds)
    assert total == pytest.approx(whole["exact_match"] * whole["episodes"])
    tagged = {tag: sum(tag in one.tags for one in rows) for tag in "xy"}
    assert {tag: part["episodes"] for tag, part in document["tags"].items()} == {t: n for t, n in tagged.items() if n}
    assert sum(document["behaviour"].values()) == pytest.approx(1)


def test_a_group_that_one_seed_lacks_is_that_of_the_others():
    seeds = [[row(kind="a"), row(kind="b")], [row(kind="a")]]
    groups = grouped(seeds, lambda one: [one.kind])
    assert {kind: [len(rows) for rows in by_seed] for kind, by_seed in groups.items()} == {"a": [1, 1], "b": [1, 0]}
    assert arm_document(seeds, 5)["kind_intervals"]["b"]["exact_match"] == (1.0, 1.0)
