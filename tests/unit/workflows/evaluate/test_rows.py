"""What one episode says, held against its question."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.agent.trajectory import Ending, Outcome, Tool
from cluster.storage import Folder
from tests.unit.workflows.evaluate.made_rows import PICTURE, QUESTION, call, episode, row
from workflows.evaluate.rows import read_rows, row_of, write_rows

GOLD, OTHER = "the founder of Velo is Ada LUNE!", "the founder of Brin is Ada Lunette."


def played(*calls, **more):
    return row_of("sft", QUESTION, episode(calls=calls, **more))


def test_a_row_counts_searches_by_tool_and_leaves_out_what_no_provider_saw():
    made = played(
        call(Tool.IMAGE_SEARCH, query="red star"),
        call(Tool.IMAGE_SEARCH, Outcome.EMPTY),
        call(Tool.TEXT_SEARCH, query="x"),
        call(Tool.TEXT_SEARCH, Outcome.POLICY_ERROR, query="y"),
        answer="a. lune!",
    )
    assert (made.image_searches, made.crops, made.text_searches, made.searches_ok) == (2, 1, 1, 2)
    assert (made.first_tool, made.exact_match, made.kind, made.label) == ("crop", 1.0, "image_text", "required")
    assert (made.turns, made.sampled_tokens, made.total_tokens, made.version) == (1, 3, 6, 2)
    assert made.cost_usd == pytest.approx(0.03)


def test_a_row_says_what_would_have_been_right_and_which_picture_was_shown():
    made = played()
    assert (made.first_tools, made.tags, made.image_refs) == (("crop", "image_search"), ("crowded",), (PICTURE.sha256,))


@pytest.mark.parametrize(
    ("calls", "first"),
    [
        ([], "none"),
        ([call(Tool.TEXT_SEARCH, query="x")], "text_search"),
        ([call(Tool.IMAGE_SEARCH)], "image_search"),
        ([call(Tool.IMAGE_SEARCH, query="red star"), call(Tool.TEXT_SEARCH, query="x")], "crop"),
        ([call(Tool.IMAGE_SEARCH, Outcome.POLICY_ERROR), call(Tool.TEXT_SEARCH, query="x")], "text_search"),
    ],
)
def test_the_first_tool_is_the_first_that_a_provider_saw(calls, first):
    assert played(*calls).first_tool == first


@pytest.mark.parametrize(
    ("first", "second", "first_hit", "any_hit"),
    [(GOLD, OTHER, True, True), (OTHER, GOLD, False, True), (OTHER, OTHER, False, False)],
)
def test_evidence_hits_where_a_gold_answer_stands_in_it_as_whole_words(first, second, first_hit, any_hit):
    calls = call(Tool.TEXT_SEARCH, query="x", says=first), call(Tool.TEXT_SEARCH, query="y", says=second, number=2)
    made = played(*calls)
    assert (made.first_hit, made.evidence_hit) == (first_hit, any_hit)


@pytest.mark.parametrize(
    ("cites", "cited", "supported"),
    [((), False, False), ((1,), True, False), ((1, 2), True, True), ((7,), True, False)],
)
def test_a_citation_supports_when_the_evidence_of_that_number_does(cites, cited, supported):
    calls = call(Tool.TEXT_SEARCH, query="x", says=OTHER), call(Tool.TEXT_SEARCH, query="y", says=GOLD, number=2)
    made = played(*calls, cites=cites)
    assert (made.cited, made.cited_support) == (cited, supported)


def test_a_format_that_the_reward_found_broken_is_broken():
    assert played().format_ok
    assert not played(good=0.0).format_ok
    assert not played(ending=Ending.OUT_OF_TURNS).format_ok


def test_a_judge_that_was_asked_and_said_nothing_usable_left_the_row_unjudged():
    assert not row().unjudged
    assert not row(judged=0.0, judge_says="another person").unjudged
    assert row(judge_says="no verdict").unjudged


def test_rows_come_back_from_parquet_as_they_were(tmp_path):
    rows = [row(), row(question_id="q2", answers=(), tags=(), seconds=0.1, judged=1.0, judge_says="it fits")]
    write_rows(Folder(tmp_path), "sft.parquet", rows)
    assert read_rows(Folder(tmp_path), "sft.parquet") == rows


def test_rows_of_another_format_are_not_taken_for_rows(tmp_path):
    pq.write_table(pa.table({"arm": ["sft"], "images": [1]}), tmp_path / "old.parquet")
    with pytest.raises((TypeError, KeyError)):
        read_rows(Folder(tmp_path), "old.parquet")
