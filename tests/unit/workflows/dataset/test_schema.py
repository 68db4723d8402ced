"""A dataset's rows survive Parquet, and say exactly what is learned."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.model.expansion import expand
from tests.unit.workflows.dataset.made import IMAGE_TOKEN, MemoryImages, png, question, trajectory
from workflows.dataset.schema import (
    CONVERSATIONS,
    QUESTIONS,
    BadConversation,
    conversation_row,
    question_row,
    segments_of,
)
from workflows.grpo.questions import question_of


def through_parquet(row, schema):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), sink)
    return pq.read_table(io.BytesIO(sink.getvalue())).to_pylist()[0]


def test_the_first_columns_are_those_of_fvqa_as_released():
    assert QUESTIONS.names[:7] == [
        "prompt", "images", "reward_model", "data_source", "image_urls", "data_id", "category",
    ]  # fmt: skip
    assert CONVERSATIONS.names[: len(QUESTIONS.names)] == QUESTIONS.names


def test_a_question_comes_back_from_parquet_as_it_was():
    images = MemoryImages()
    asked = question([images.put(png())])
    row = through_parquet(question_row(asked, [png()]), QUESTIONS)
    assert question_of(row, MemoryImages()) == asked
    assert row["prompt"] == [{"role": "user", "content": "<image>what is it?"}]
    assert json.loads(row["reward_model"]["candidate_answers"]) == ["a red star"]


def test_a_question_may_leave_its_pictures_in_the_blobs():
    images = MemoryImages()
    asked = question([images.put(png())])
    row = through_parquet(question_row(asked, [None]), QUESTIONS)
    assert row["images"] == [{"bytes": None}]
    assert question_of(row, images) == asked


def test_a_conversation_comes_back_token_by_token_and_only_what_the_policy_said_is_learned():
    ref = MemoryImages().put(png())
    told = trajectory(ref)
    row = through_parquet(conversation_row(question([ref]), [None], told), CONVERSATIONS)
    back = segments_of(row)
    for before, after in zip(told.segments, back, strict=True):
        assert after.kind is before.kind
        np.testing.assert_array_equal(after.token_ids, before.token_ids)
        assert after.images == before.images
        assert after.text == before.text
    expanded = expand(back, IMAGE_TOKEN)
    assert expanded.token_ids[expanded.loss_mask].tolist() == [7, 8, 10, 11, 12]
    assert len(expanded) == told.expanded_length
    assert row["searches"] == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"segments": None},
        {"segments": []},
        {"segments": [{"kind": "song", "token_ids": [1], "images": [], "text": ""}]},
        {"segments": [{"kind": "prompt", "token_ids": [1], "images": [], "text": ""}]},
        {"segments": [{"kind": "action", "token_ids": None, "images": [], "text": ""}]},
    ],
)
def test_a_row_without_a_conversation_is_refused(broken):
    with pytest.raises(BadConversation):
        segments_of(broken)
