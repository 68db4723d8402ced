"""What of a teacher's work is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure, Label
from tests.unit.workflows.dataset.made import question, trajectory
from workflows.dataset.build import choose, reported
from workflows.dataset.checks import balanced, fault_of
from workflows.dataset.source import Part

LABELS = st.dictionaries(st.text(min_size=1, max_size=6), st.sampled_from(["free", "required", "unknown"]))


def test_a_right_answer_that_stands_in_the_cited_result_is_kept():
    assert fault_of(question(), trajectory()) == ""


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        (trajectory(answer="blue star"), "wrong_answer"),
        (trajectory(evidence="nothing of it"), "unseen_answer"),
        (trajectory(citations=()), "unseen_answer"),
        (trajectory(citations=(9,)), "unseen_answer"),
        (trajectory(format_ok=False), "bad_format"),
        (trajectory(ending=Ending.GAVE_UP), "gave_up"),
        (trajectory(ending=Ending.OUT_OF_TURNS, failure=Failure.POLICY), "policy_failure"),
        (trajectory(ending=Ending.FAILED, failure=Failure.INFRA), "infrastructure"),
        (trajectory(ending=Ending.FAILED, failure=Failure.DATA), "bad_image"),
    ],
)
def test_everything_else_is_dropped_with_its_cause(told, fault):
    assert fault_of(question(), told) == fault


def test_what_needs_no_search_may_be_answered_without_a_citation():
    assert fault_of(question(label=Label.FREE), trajectory(citations=())) == ""


@given(LABELS, st.integers(0, 30))
def test_both_labels_are_kept_in_equal_parts_and_in_order(labels, wanted):
    kept = balanced(labels, wanted)
    counts = {label: sum(labels[id] == label for id in kept) for label in ("free", "required", "unknown")}
    order = list(labels)
    assert len(kept) <= wanted
    assert kept == sorted(kept, key=order.index)
    if set(labels.values()) & {"free", "required"}:
        available = {label: list(labels.values()).count(label) for label in counts}
        each = min(wanted // 2, available["free"], available["required"])
        assert counts == {"free": each, "required": each, "unknown": 0}
    else:
        assert len(kept) == min(wanted, len(labels))


def row(key, id, dropped="", label="free"):
    return {
        "key": key, "data_id": id, "dropped": dropped, "detail": "why", "kind": "head", "designed_label": label,
        "category": "year",
    }  # fmt: skip


def test_a_row_is_written_spare_or_dropped_and_nothing_else():
    rows = [row("a", "1"), row("b", "2", "wrong_answer"), row("c", "1"), row("d", "3"), row("e", "4")]
    part = Part("questions/train", "train", 2, 5, taught=False)
    chosen = choose(rows, part)
    report = reported(rows, chosen)
    assert chosen == ["a", "d"]
    assert (report["rows"], report["spare"]) == (2, 1)
    assert report["dropped"] == {"wrong_answer": 1, "duplicate": 1}
    assert report["rows"] + report["spare"] + sum(report["dropped"].values()) == len(rows)
    assert any("occurs twice" in line for line in report["listed"])
    assert report["counts"]["category"] == {"year": 2}
