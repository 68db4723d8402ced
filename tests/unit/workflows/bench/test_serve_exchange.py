"""What a client of the service makes of the bytes that it is sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workflows.loopback_service import episode, error_body
from workflows.bench.serve_exchange import Listener, Outcome, fullest_second, refusal


def heard(pieces, every_s=0.01):
    listener = Listener(10.0)
    now = 10.0
    for line in b"".join(pieces).splitlines():
        now += every_s
        listener.line(line, now)
    return listener.ended(now)


def test_a_stream_tells_its_first_step_its_texts_and_its_end():
    one = heard(episode())
    assert one.outcome is Outcome.ANSWERED
    assert one.first_step_s == pytest.approx(0.03)  # the second event; between events is a line without anything
    assert (one.finish_reason, one.version, one.sampled, one.texts_per_s) == ("stop", 3, 30, 4)


def test_a_stream_without_an_end_has_failed_and_so_has_one_that_says_so():
    cut = heard(episode()[:-2])
    assert (cut.outcome, cut.problem, cut.shaped) == (Outcome.FAILED, "the answer broke off", False)
    said = heard([*episode()[:5], b"data: " + error_body("The agent died.", "agent_died") + b"\n\n"])
    assert (said.outcome, said.problem, said.shaped) == (Outcome.FAILED, "The agent died.", True)
    odd = heard([b'data: {"error": "no"}\n\n'])
    assert (odd.outcome, odd.shaped) == (Outcome.FAILED, False)


def test_a_plain_answer_is_read_as_a_whole():
    listener = Listener(1.0)
    choice = {"finish_reason": "stop", "weights_version": 2, "message": {"content": "Ada"}}
    listener.whole(json.dumps({"choices": [choice], "usage": {"completion_tokens": 9}}).encode())
    one = listener.ended(1.5)
    assert (one.outcome, one.version, one.sampled, one.seconds) == (Outcome.ANSWERED, 2, 9, 0.5)


@pytest.mark.parametrize("body", [b"[1]", b"7", b"no"])
def test_what_is_no_object_is_not_heard(body):
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own, or ours
        Listener(0.0).whole(body)


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome", "shaped", "after"),
    [
        (429, {"Retry-After": "2"}, error_body("full"), Outcome.REFUSED, True, 2.0),
        (429, {}, error_body("full"), Outcome.REFUSED, True, None),
        (429, {"Retry-After": "soon"}, b"full", Outcome.REFUSED, False, None),
        (503, {}, error_body("dead"), Outcome.FAILED, True, None),
        (400, {"Retry-After": "1"}, error_body("bad"), Outcome.FAILED, True, None),
        (500, {}, b"<html>", Outcome.FAILED, False, None),
        (502, {}, b'{"error": {"message": "no type"}}', Outcome.FAILED, False, None),
        (500, {}, b"[]", Outcome.FAILED, False, None),
    ],
)
def test_an_error_is_a_refusal_or_a_failure_and_has_openais_shape_or_not(status, headers, body, outcome, shaped, after):
    one = refusal(0.0, 0.1, status, headers, body)
    assert (one.outcome, one.shaped, one.retry_after_s) == (outcome, shaped, after)
    assert (one.problem != "") == (outcome is Outcome.FAILED)


@given(st.lists(st.floats(0, 5), max_size=40).map(sorted))
def test_the_fullest_second_is_that_of_counting_every_window(times):
    windows = [sum(start <= at < start + 1.0 for at in times) for start in times]
    assert abs(fullest_second(times) - max(windows, default=0)) <= sum(
        1 for a in times for b in times if a < b and abs((b - a) - 1.0) < 1e-9
    )


def test_twenty_texts_at_even_distances_are_twenty_a_second():
    assert fullest_second([0.05 * i for i in range(100)]) in (20, 21)  # 0.05 is no binary fraction
    assert fullest_second([i / 16 for i in range(100)]) == 16
    assert fullest_second([]) == 0
