"""The tables say what the document says, in 80 characters."""

import io

import pytest
from rich.console import Console

from tests.unit.workflows.evaluate.made_rows import row
from workflows.evaluate.arms import ARMS
from workflows.evaluate.document import arm_document
from workflows.evaluate.tables import choices_table, kinds_tables, legend, overall_table

KINDS = ("looking", "head", "image", "text", "image_text", "two_hops", "refinement")


def rows(right=3, **more):
    return [
        row(
            question_id=f"q{i:03d}", kind=KINDS[i % 7], label=("free", "required")[i % 2], seconds=12.34,
            tags=("crowded", "unseen_wording")[: i % 3], exact_match=float(i % 4 < right), text_searches=1,
            searches_ok=1, image_searches=1, crops=1, cited=True, cited_support=True, sampled_tokens=1234, **more,
        )
        for i in range(100)
    ]  # fmt: skip


def shown(table):
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue()


@pytest.fixture(scope="module")
def documents():
    names = ["direct_base", "rag_crop_rl", "prompted", "sft", "rl"]
    return {name: arm_document([rows(i)], 5) for i, name in enumerate(names)}


def test_nothing_is_cut_in_eighty_characters(documents):
    for table in (overall_table(documents), choices_table(documents), *kinds_tables(documents)):
        text = shown(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
    for name in documents:
        assert name in shown(overall_table(documents))


def test_a_score_stands_with_its_interval_and_with_what_the_searches_found(documents):
    line = next(line for line in shown(overall_table(documents)).splitlines() if " sft " in line)
    low, high = (round(100 * bound) for bound in documents["sft"]["intervals"]["exact_match"])
    assert f"75.0 ({low}-{high})" in line
    assert line.split()[3] == "50%"  # one of two searches found something


def test_more_than_four_arms_make_more_than_one_table_of_kinds(documents):
    tables = [shown(table) for table in kinds_tables(documents)]
    assert len(tables) == 2
    assert "direct_base" in tables[0]
    assert "rl" in tables[1]
    assert all(kind in table for table in tables for kind in (*KINDS, "all free", "crowded", "unseen_wording"))


def test_what_no_arm_measured_is_a_dash_and_what_only_a_judge_says_has_no_column_without_one(documents):
    bare = shown(choices_table({"direct": arm_document([[row(first_tools=())]], 5)}))
    assert "judged" not in bare
    assert bare.splitlines()[-2].split() == ["direct", "100", "±0", "-", "-", "-", "-", "0", "±0", "-"]
    judged = [*rows(judged=1.0, judge_says="it fits"), row(question_id="z", judge_says="no verdict")]
    asked = shown(choices_table({"sft": arm_document([judged], 5)}))
    assert asked.splitlines()[-2].split()[3:5] == ["100", "±0"]
    assert asked.splitlines()[-2].split()[-1] == "1"


def test_failed_episodes_get_a_column_when_there_are_some():
    spoilt = [*rows(), row(question_id="x", failure="infra")]
    assert "failed" in shown(overall_table({"rl": arm_document([spoilt], 5)}))
    assert "failed" not in shown(overall_table({"rl": arm_document([rows()], 5)}))


def test_every_arm_is_explained():
    told = legend({name: {"says": arm.says} for name, arm in ARMS.items()})
    assert told.count("\n") == len(ARMS) - 1
    assert all(len(line) <= 80 for line in told.splitlines())
