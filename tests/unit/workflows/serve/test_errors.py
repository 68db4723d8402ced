"""Refusals in OpenAI's shape, whatever they quote."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.serve import errors
from workflows.serve.errors import ApiError

EVERY = [
    (errors.invalid("a", "n"), 400),
    (errors.invalid("a", code="c", status=415), 415),
    (errors.unauthorized("a"), 401),
    (errors.not_found("a"), 404),
    (errors.too_large("a"), 413),
    (errors.too_many("a", 1.0), 429),
    (errors.budget_spent("a"), 429),
    (errors.unavailable("a", 2.0), 503),
    (errors.agent_died(), 503),
    (errors.broken(), 500),
]


@pytest.mark.parametrize(("error", "status"), EVERY, ids=lambda value: str(value))
def test_every_error_has_openais_shape_and_its_status(error, status):
    assert error.status == status
    assert set(error.body) == {"error"}
    assert set(error.body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("error", "status"), EVERY, ids=lambda value: str(value))
def test_an_error_arrives_in_another_process_as_it_left(error, status):
    there = pickle.loads(pickle.dumps(error))
    assert (there.body, there.headers, there.status) == (error.body, error.headers, status)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (90.0, "90")])
def test_retry_after_is_whole_seconds_and_never_zero(seconds, header):
    assert errors.too_many("a", seconds).headers == {"Retry-After": header}


def test_only_what_a_client_can_act_on_is_in_the_headers():
    assert errors.invalid("a").headers == {}
    assert errors.unavailable("a").headers == {}
    assert errors.unauthorized("a").headers == {"WWW-Authenticate": "Bearer"}
    assert errors.budget_spent("a").headers == {"x-should-retry": "false"}


@given(st.text(), st.text())
def test_whatever_is_quoted_a_message_is_one_short_line_that_can_be_sent(message, param):
    error = errors.invalid(message * 40, param * 40)
    sent = json.loads(json.dumps(error.body, ensure_ascii=False).encode())["error"]
    assert len(sent["message"]) <= 500
    assert len(sent["param"]) <= 120
    assert "\n" not in sent["message"] + sent["param"]
    assert "\x00" not in sent["message"] + sent["param"]


def test_a_long_message_is_cut_and_says_so():
    message = errors.invalid("x" * 10_000_000).message
    assert len(message) == 500
    assert message.endswith("...")


def test_a_message_is_what_the_exception_says():
    assert str(ApiError(400, "Say what to ask.")) == "Say what to ask."
