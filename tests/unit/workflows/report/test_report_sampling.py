"""Which episodes are shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workflows.report.sampling import evenly, first_of_each, outcome, questions_shown

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "question_id": st.integers(0, 60).map(str),
            "exact_match": st.sampled_from([0.0, 1.0]),
            "ending": st.sampled_from(["answered", "gave_up", "out_of_turns"]),
            "failure": st.sampled_from(["none", "infra"]),
        }
    ),
    max_size=80,
).map(lambda rows: [{**row, "kind": f"kind {int(row['question_id']) % 5}"} for row in rows])


@given(ROWS, ROWS, st.integers(0, 30))
def test_the_sample_is_bounded_without_doubles_and_the_same_in_any_order(first, second, n):
    shown = questions_shown({"a": first, "b": second}, n)
    assert len(shown) == len(set(shown)) == min(n, len({row["question_id"] for row in first + second}))
    unique = list({row["question_id"]: row for row in first}.values())
    assert questions_shown({"a": unique}, n) == questions_shown({"a": unique[::-1]}, n)


@given(ROWS, st.integers(5, 30))
def test_every_kind_is_among_them_while_there_are_places(rows, n):
    kinds = {row["question_id"]: row["kind"] for row in rows}
    assert {kinds[id_] for id_ in questions_shown({"a": rows}, n)} == set(kinds.values())


def test_outcomes_that_are_rare_are_seen_beside_those_that_are_common():
    rows = [
        {"question_id": str(i), "kind": "k", "exact_match": float(i != 77), "ending": "answered"} for i in range(100)
    ]
    assert "77" in questions_shown({"a": rows}, 2)


def test_an_outcome_is_one_of_four():
    assert outcome({"ending": "answered", "exact_match": 1.0}) == "right"
    assert outcome({"ending": "answered", "accuracy": 0.0}) == "wrong"
    assert outcome({"ending": "gave_up", "exact_match": 0.0}) == "gave up"
    assert outcome({"ending": "out_of_turns", "exact_match": 0.0}) == "failed"
    assert outcome({"ending": "answered", "exact_match": 1.0, "failure": "infra"}) == "failed"


def test_of_several_samples_the_first_is_shown():
    rows = [{"question_id": "a", "sample_index": 1}, {"question_id": "b", "sample_index": 0}, {"question_id": "a"}]
    assert first_of_each(rows, ["a", "b", "c"]) == [2, 1]


@given(st.lists(st.integers(), min_size=1, unique=True), st.integers(0, 20))
def test_steps_are_taken_evenly_with_the_last_one(items, n):
    found = evenly(items, n)
    assert len(found) == min(n, len(items))
    assert not found or found[-1] == items[-1]
