"""What the numbers of an evaluation say and leave out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import (
    Ending,
    Evidence,
    Failure,
    Label,
    Outcome,
    Question,
    RewardParts,
    Segment,
    SegmentKind,
    Tool,
    ToolCall,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
)
from cluster.storage import Folder
from workflows.evaluate.metrics import by, measure
from workflows.evaluate.rows import Row, read_rows, row_of, write_rows

QUESTION = Question("q1", "who?", (), ("Ada Lune", "A. Lune"), Label.REQUIRED, kind="image_text")


def call(tool: Tool, outcome: Outcome = Outcome.OK, query: str = "", turn: int = 1) -> ToolCall:
    found = (Evidence(1, "t", "x"),) if outcome is Outcome.OK else ()
    return ToolCall(ToolRequest(tool, query), ToolResult(outcome, found), turn, 0.0)


def episode(answer: str = "Ada Lune", calls=(), ending=Ending.ANSWERED, failure=Failure.NONE, good=1.0) -> Trajectory:
    said = np.array([1, 2, 3], np.int32)
    turn = Segment(SegmentKind.ACTION, said, np.zeros(3, np.float32), (VersionSpan(2, 0, 3),), text="said")  # type: ignore[arg-type]
    return Trajectory(
        "q1", 0, (Segment(SegmentKind.PROMPT, said), turn), tuple(calls), ending, failure, answer,
        format_ok=True, seconds=2.0, reward=RewardParts(0.5, 1.0, good, 1.0, len(calls)),
    )  # fmt: skip


def row(**changes) -> Row:
    return replace(row_of("sft", QUESTION, episode()), **changes)


def test_a_row_counts_searches_by_tool_and_leaves_out_what_no_provider_saw():
    calls = [
        call(Tool.IMAGE_SEARCH, query="red star"),
        call(Tool.IMAGE_SEARCH, Outcome.EMPTY),
        call(Tool.TEXT_SEARCH, query="x"),
        call(Tool.TEXT_SEARCH, Outcome.POLICY_ERROR, query="y"),
    ]
    made = row_of("sft", QUESTION, episode("a. lune!", calls))
    assert (made.image_searches, made.crops, made.text_searches, made.searches_ok) == (2, 1, 1, 2)
    assert (made.first_tool, made.exact_match, made.kind, made.label) == ("crop", 1.0, "image_text", "required")
    assert (made.turns, made.sampled_tokens, made.total_tokens, made.version) == (1, 3, 6, 2)


def test_what_the_policy_failed_at_is_wrong_and_what_the_world_failed_at_is_not_counted():
    silent = row_of("sft", QUESTION, episode("", ending=Ending.OUT_OF_TURNS, failure=Failure.POLICY))
    spoilt = row_of("sft", QUESTION, episode("Ada Lune", ending=Ending.FAILED, failure=Failure.INFRA))
    measured = measure([row_of("sft", QUESTION, episode()), silent, spoilt], max_calls=5)
    assert (measured.episodes, measured.failed, measured.exact_match) == (2, 1, 0.5)
    assert measured.format_valid == 0.5


def test_both_search_ratios_of_the_paper():
    twice = row(image_searches=1, text_searches=1, searches_ok=1)
    measured = measure([twice, row(), row(), row()], max_calls=2)
    assert measured.search_ratio == 0.25  # a quarter of the episodes search
    assert measured.search_ratio_allowed == 0.25  # two of eight calls
    assert measure([twice, row()], max_calls=5).search_ratio_allowed == pytest.approx(0.2)
    assert measured.search_success == 0.5


def test_what_is_undefined_is_none_and_not_nought():
    assert measure([row()], 5).search_success is None
    assert measure([row()], 5).crop_share is None
    nothing = measure([], 5)
    assert (nothing.episodes, nothing.exact_match, nothing.search_ratio_allowed) == (0, None, None)


def test_a_format_that_the_reward_found_broken_is_broken():
    assert not row_of("sft", QUESTION, episode(good=0.0)).format_ok


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30))
def test_kinds_make_up_the_whole(kinds):
    rows = [row(kind=kind, exact_match=float(right)) for kind, right in kinds]
    parts, whole = by(rows, lambda r: r.kind, 5), measure(rows, 5)
    assert sum(part.episodes for part in parts.values()) == whole.episodes
    total = sum((part.exact_match or 0) * part.episodes for part in parts.values())
    assert total == pytest.approx((whole.exact_match or 0) * whole.episodes)


def test_rows_come_back_from_parquet_as_they_were(tmp_path):
    rows = [row(), row(question_id="q2", answers=(), seconds=0.1)]
    write_rows(Folder(tmp_path), "sft.parquet", rows)
    assert read_rows(Folder(tmp_path), "sft.parquet") == rows
