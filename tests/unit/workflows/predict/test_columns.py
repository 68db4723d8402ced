"""Somebody's rows become questions, whatever they hold."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from tests.unit.workflows.predict.asked import picture
from workflows.predict.columns import ASKED, MAX_CHARS, asked_row, columns_of

REF = {"sha256": "a" * 64, "width": 4, "height": 3}


def row_of(row, question=None, number=7):
    return asked_row(row, columns_of(list(row), "here", question), number)


def test_the_question_is_a_text_or_the_users_last_turn_without_picture_marks():
    assert row_of({"question": " who? "})["question"] == "who?"
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "<image>who?"},
    ]
    assert row_of({"prompt": turns})["question"] == "who?"
    assert row_of({"asked": "what?", "question": "who?"}, "asked")["question"] == "what?"


def test_a_file_without_a_question_is_told_its_columns():
    with pytest.raises(UserError, match=r"here has no column question or prompt; it has text, image: name the one"):
        columns_of(["text", "image"], "here")
    with pytest.raises(UserError, match="no column ask; it has question"):
        columns_of(["question"], "here", "ask")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "question is empty, not a text"),
        (3, "question is 3, not a text"),
        ("  <image> ", "question has no text"),
        ([{"role": "assistant", "content": "hi"}], "question is empty, not a text"),
        ("x" * (MAX_CHARS + 1), "over the limit"),
    ],
)
def test_a_row_that_asks_nothing_says_why(value, problem):
    assert problem in row_of({"question": value})["problem"]


def test_pictures_are_bytes_paths_and_addresses_in_all_their_forms_and_image_comes_first():
    row = {
        "question": "who?",
        "images": [picture(), {"bytes": picture("blue"), "path": "x.png"}, {"bytes": None, "path": "b/c.png"}],
        "image": "http://a.example/x.png",
    }
    found = row_of(row)["pictures"]
    assert [one["where"] for one in found] == ["http://a.example/x.png", None, None, "b/c.png"]
    assert [one["bytes"] for one in found] == [None, picture(), picture("blue"), None]
    assert row_of({"question": "who?", "image": None, "images": []})["pictures"] == []


def test_pictures_without_bytes_are_found_by_their_references():
    row = {"question": "who?", "images": [{"bytes": None}, {"bytes": picture()}], "image_refs": [REF, REF]}
    first, second = row_of(row)["pictures"]
    assert (first["sha256"], first["bytes"]) == (REF["sha256"], None)
    assert (second["sha256"], second["bytes"]) == (None, picture())
    assert row_of(row | {"images": [b""]})["problem"] == "image 1 is empty, not bytes, a path or an address"


@pytest.mark.parametrize("image", [3, b"", " ", {"bytes": None, "path": None}, [None]])
def test_a_picture_that_is_nothing_is_a_problem_and_not_left_out(image):
    assert row_of({"question": "who?", "image": image})["problem"].startswith("image 1 is ")


def test_right_answers_are_carried_in_every_known_form():
    reward = {"ground_truth": "a", "candidate_answers": json.dumps(["b", "a"])}
    assert row_of({"question": "?", "reward_model": reward})["right_answers"] == ["a", "b"]
    assert row_of({"question": "?", "answers": ["a", "b", "a"]})["right_answers"] == ["a", "b"]
    assert row_of({"question": "?", "answer": "a"})["right_answers"] == ["a"]
    assert row_of({"question": "?", "reward_model": {"ground_truth": "a", "candidate_answers": "["}})[
        "right_answers"
    ] == ["a"]
    assert row_of({"question": "?"})["right_answers"] == []


def test_an_id_that_there_is_not_follows_from_the_number_and_the_content():
    one = row_of({"question": "who?", "image": picture()})["id"]
    assert one == row_of({"question": "who?", "image": picture()})["id"]
    others = [
        row_of({"question": "who?", "image": picture()}, number=8),
        row_of({"question": "what?", "image": picture()}),
        row_of({"question": "who?", "image": picture("blue")}),
        row_of({"question": "who?", "image": "red.png"}),
    ]
    assert len({one, *(other["id"] for other in others)}) == 5
    assert row_of({"question": "who?", "id": 12})["id"] == "12"
    assert row_of({"question": "who?", "data_id": "x"})["id"] == "x"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "role"]), inner),
    max_leaves=6,
)


@given(st.fixed_dictionaries({name: ANYTHING for name in ("question", "image", "images", "image_refs", "answers")}))
def test_every_row_becomes_one_row_of_the_schema(row):
    found = row_of(row)
    assert pa.Table.from_pylist([found], schema=ASKED).num_rows == 1
    assert found["problem"] or found["question"]
