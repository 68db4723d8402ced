"""OpenAI's chat request: what is taken, what is ignored, and what is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.serve.chat import Asked, Bounds, ChatRequest, asked, parsed
from workflows.serve.errors import ApiError
from workflows.serve.settings import RequestSettings

MODEL = "embedded"
USER = {"role": "user", "content": "Who built it?"}
PICTURE = "data:image/png;base64,AAAA"


def body(**fields):
    return {"model": MODEL, "messages": [USER], **fields}


def ask(settings=None, **fields):
    return asked(parsed(json.dumps(body(**fields)).encode()), MODEL, settings or RequestSettings())


def refusal(settings=None, **fields):
    with pytest.raises(ApiError) as refused:
        ask(settings, **fields)
    return refused.value


def shown(url=PICTURE):
    return {"type": "image_url", "image_url": {"url": url}}


def said(text):
    return {"type": "text", "text": text}


def test_a_plain_question_is_asked_greedily_within_the_services_own_bounds():
    assert ask() == Asked("Who built it?", (), Bounds(None, None, None, 120.0))


def test_every_field_that_has_a_meaning_here_is_taken():
    question = ask(
        temperature=0.7, top_p=0.9, seed=-1, n=2, stop=["\n", "END"], max_tokens=90, tool_choice="none", user="ada"
    )
    assert (question.temperature, question.top_p, question.n) == (0.7, 0.9, 2)
    assert question.seed == 2**31 - 1  # engines take 31 bits
    assert question.stop == ("\n", "END")
    assert question.max_tokens == 90
    assert not question.search


def test_the_newer_name_of_max_tokens_wins():
    assert ask(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_one_stop_may_be_plain_text():
    assert ask(stop="END").stop == ("END",)


def test_a_top_p_of_zero_is_greedy():
    assert (ask(top_p=0, temperature=1).temperature, ask(top_p=0).top_p) == (0.0, 1.0)


def test_null_is_as_good_as_leaving_a_field_out():
    nothing = dict.fromkeys(set(ChatRequest.model_fields) - {"model", "messages"})
    assert ask(**nothing) == ask()


def test_fields_without_a_meaning_here_are_ignored():
    harmless = {
        "tools": [],
        "functions": None,
        "function_call": "auto",
        "response_format": {"type": "text"},
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
        "presence_penalty": 0,
        "logit_bias": {},
        "store": True,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "web_search_options": {"search_context_size": "low"},
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    assert ask(**harmless) == ask()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"50256": -100}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(field, value):
    error = refusal(**{field: value})
    assert (error.status, error.param, error.code) == (400, field, "unsupported_parameter")
    assert error.message.startswith(f"{field} cannot be done here: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a", ""]}, "stop[1]"),
        (
            {"messages": [USER, {"role": "user", "content": [said("a"), {"type": "text"}]}]},
            "messages[1].content[1].text",
        ),
        ({"messages": [{"role": "user", "content": [shown(""), said("a")]}]}, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": {"text": "a"}}]}, "messages[0].content"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [said("a"), 7]}]}, "messages[0].content[1]"),
        ({"limits": {"turns": 0}}, "limits.turns"),
        ({"limits": {"more": 0}}, "limits.more"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
def test_an_error_names_the_place_in_the_body(fields, param):
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)


def test_a_missing_field_is_named():
    with pytest.raises(ApiError) as refused:
        parsed(b'{"messages": []}')
    assert refused.value.param == "model"


@pytest.mark.parametrize("field", ["model", "user", "stop"])
def test_half_a_character_is_refused_in_every_text(field):
    assert refusal(**{field: "a\ud800"}).param == field


def test_another_model_is_not_found_and_the_error_says_which_one_there_is():
    error = refusal(model="gpt-4o")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert MODEL in error.message
    assert "gpt" not in error.message


def test_n_is_bounded_by_the_settings():
    assert ask(RequestSettings(choices=2), n=2).n == 2
    assert refusal(RequestSettings(choices=2), n=3).param == "n"


def test_a_request_may_ask_for_less_than_the_service_allows_and_never_for_more():
    settings = RequestSettings(turns=3, tool_calls=2, cost_usd=0.5, seconds=60)
    assert ask(settings, limits={"turns": 9, "tool_calls": 9, "cost_usd": 9, "seconds": 900}).bounds == Bounds(
        3, 2, 0.5, 60
    )
    assert ask(settings, limits={"turns": 1, "tool_calls": 0, "cost_usd": 0, "seconds": 0.5}).bounds == Bounds(
        1, 0, 0.0, 0.5
    )
    assert ask(limits={"tool_calls": 0}).bounds == Bounds(None, 0, None, 120.0)


def test_pictures_come_in_the_order_of_the_conversation():
    talk = [
        {"role": "user", "content": [said("This?"), shown("data:1")]},
        {"role": "assistant", "content": "A bird."},
        {"role": "user", "content": [shown("data:2"), said("And this?"), shown("data:3")]},
    ]
    assert ask(messages=talk).pictures == ("data:1", "data:2", "data:3")


def test_an_answer_of_ours_can_be_sent_back_as_it_came():
    answer = {"role": "assistant", "content": "Ada [1]", "refusal": None, "annotations": [], "search_steps": [{"a": 1}]}
    assert "Assistant: Ada [1]" in ask(messages=[USER, answer, USER]).text


def test_text_parts_of_every_role_are_read():
    rules = {"role": "developer", "content": [said("Be brief."), said("Be kind.")]}
    assert ask(messages=[rules, USER]).text == "Instructions: Be brief.\nBe kind.\nWho built it?"


def test_the_schema_of_the_request_can_be_published():
    schema = ChatRequest.model_json_schema()
    assert {"model", "messages"} == set(schema["required"])
    assert schema["properties"]["limits"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from([*ChatRequest.model_fields, "tools", "response_format", "modalities", "logit_bias", "other"])
contents = json_values | st.lists(
    st.builds(said, json_values) | st.builds(shown, json_values) | json_values, max_size=4
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": contents})
    | json_values,
    max_size=4,
)


def judged(sent):
    try:
        return asked(parsed(sent), MODEL, RequestSettings())
    except ApiError as error:
        return error


@given(st.dictionaries(fields, json_values, max_size=4), messages)
def test_any_json_is_a_question_or_a_refusal_and_never_anything_else(some, talk):
    found = judged(json.dumps({"model": MODEL, "messages": talk, **some}).encode())
    if isinstance(found, ApiError):
        assert 400 <= found.status < 500
        json.dumps(found.body, ensure_ascii=False).encode()
    else:
        assert found.text.strip()
        assert found.n >= 1
        assert 0 < found.bounds.seconds <= 120


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(sent):
    with pytest.raises(ApiError):
        parsed(sent)
