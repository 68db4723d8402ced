"""Ray's proxy never has the last word on a request of OpenAI's API, and never more of a say than that."""

import json

import pytest

from workflows.serve.deploy import OWN
from workflows.serve.front import LastWord, middlewares

JSON, PLAIN, STREAM = "application/json", "text/plain; charset=utf-8", "text/event-stream; charset=utf-8"


def start(status, kind):
    return {"type": "http.response.start", "status": status, "headers": [[b"Content-Type", kind.encode()]]}


def body(data, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


async def through(*said, path="/v1/chat/completions", kind="http"):
    """What a client gets of it when an app says this."""
    got = []

    async def app(scope, receive, send):
        for message in said:
            await send(message)

    async def send(message):
        got.append(message)

    await LastWord(app)({"type": kind, "path": path}, None, send)
    return got


WHOLE = (start(200, JSON), body(b"{}"))
REFUSED = (start(503, JSON), body(b'{"error": {}}'))
PREFLIGHT = (start(400, PLAIN), body(b"Disallowed CORS headers"))  # starlette says so, in the ingress
STREAMED = (start(200, STREAM), body(b"data: {}\n\n", more=True), body(b"data: [DONE]\n\n"))


@pytest.mark.parametrize("said", [WHOLE, REFUSED, PREFLIGHT, STREAMED])
async def test_what_the_ingress_says_is_passed_on_as_it_is(said):
    assert await through(*said) == list(said)


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ((), 503, "service_unavailable"),
        ((start(503, PLAIN), body(b"The actor died")), 503, "service_unavailable"),
        ((start(408, PLAIN), body(b"Request timed out")), 503, "service_unavailable"),
        ((start(404, PLAIN), body(b"Path not found")), 503, "service_unavailable"),
        ((start(429, PLAIN), body(b"BackPressure", more=True), body(b"Error")), 429, "rate_limit_exceeded"),
    ],
)
async def test_where_nothing_is_said_or_ray_speaks_for_itself_the_error_has_openais_shape(said, status, code):
    began, told = await through(*said)
    headers = {name.decode(): value.decode() for name, value in began["headers"]}
    assert (began["status"], headers["content-type"]) == (status, "application/json")
    assert int(headers["retry-after"]) >= 1
    assert int(headers["content-length"]) == len(told["body"])
    assert not told.get("more_body")
    assert set(json.loads(told["body"])["error"]) == {"message", "type", "param", "code"}
    assert json.loads(told["body"])["error"]["code"] == code


async def test_a_stream_that_breaks_off_ends_with_an_error_in_place_of_the_rest():
    begun = STREAMED[:2]
    *passed, last = await through(*begun)
    assert passed == list(begun)
    assert not last.get("more_body")
    event = last["body"].decode()
    assert event.startswith("data: ")
    assert event.endswith("\n\n")
    assert "ask again" in json.loads(event.removeprefix("data: "))["error"]["message"]


async def test_a_whole_answer_that_is_cut_stays_cut_so_that_nobody_takes_it_for_whole():
    begun = (start(200, JSON), body(b'{"id": ', more=True))
    assert await through(*begun) == list(begun)


@pytest.mark.parametrize(("path", "kind"), [("/metrics", "http"), ("/other/app", "http"), ("/v1/x", "websocket")])
async def test_requests_of_others_are_not_touched(path, kind):
    said = (start(500, PLAIN), body(b"theirs"))
    assert await through(*said, path=path, kind=kind) == list(said)
    assert await through(path=path, kind=kind) == []


def test_ray_finds_it_by_the_name_that_the_service_gives():
    from ray._common.utils import import_attr
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    found = import_attr(OWN["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    assert found is middlewares
    assert [one.cls for one in validate_http_proxy_callback_return(found())] == [LastWord]
