"""One chat completion at a loopback server that speaks the documented shape, errors included."""

import asyncio
import logging
import pickle
import traceback
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from actors.search.metering import metered
from actors.search.providers.openai_chat import ChatEndpoint, Said
from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError

KEY = "sk-test-0123456789"
ASKED = [{"role": "user", "content": "is it so?"}]
USAGE = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def completion(content, finish="stop", usage=USAGE, **message):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return web.json_response(
        {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


def refused(status, code=None, message="no", headers=None):
    error = {"message": message, "type": code or "error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


@asynccontextmanager
async def endpoint(answer, **kwargs):
    """A ChatEndpoint at a server that always gives `answer`, and the list of (body, key) of its requests."""
    seen = []

    async def handle(request):
        seen.append((await request.json(), request.headers["authorization"]))
        return await answer(request) if asyncio.iscoroutinefunction(answer) else answer

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        made = ChatEndpoint("m", str(server.make_url("/v1")), **{"key_env": "TEST_KEY", **kwargs})
        try:
            yield made, seen
        finally:
            await made.close()


async def problem(answer, **kwargs):
    """What one request raises, after it was seen that nothing of it tells the key."""
    async with endpoint(answer, **kwargs) as (made, seen):
        with pytest.raises(ProviderError) as caught:
            await made.say(ASKED)
        assert len(seen) == 1
    error = caught.value
    assert KEY not in "".join(traceback.format_exception(error))
    while error is not None:
        assert KEY not in repr(error) + repr(vars(error))
        error = error.__cause__ or error.__context__
    return caught.value


async def test_the_model_is_asked_once_with_the_key_of_the_environment_and_its_words_are_handed_on():
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    async with endpoint(completion("It is.", "length"), max_tokens=7, extra_body=extra) as (made, seen):
        assert await made.say(ASKED) == Said("It is.", "length")
    [(body, key)] = seen
    assert (body["model"], body["messages"], body["temperature"]) == ("m", ASKED, 0.0)
    assert (body["max_completion_tokens"], body["chat_template_kwargs"]) == (7, {"enable_thinking": False})
    assert key == f"Bearer {KEY}"


async def test_an_endpoint_may_want_no_key_and_no_temperature():
    async with endpoint(completion("x"), key_env="", temperature=None) as (made, seen):
        await made.say(ASKED)
    assert "temperature" not in seen[0][0]
    assert seen[0][1] == "Bearer none"


@pytest.mark.parametrize(
    ("answer", "kind", "wait"),
    [
        (lambda: completion(None, refusal="I cannot."), ErrorKind.BAD_REQUEST, None),
        (lambda: completion("Half.", "content_filter"), ErrorKind.BAD_REQUEST, None),
        (lambda: web.json_response({"choices": []}), ErrorKind.SCHEMA, None),
        (lambda: web.json_response([1, 2]), ErrorKind.SCHEMA, None),
        (lambda: web.Response(text="<html>hello</html>", content_type="text/html"), ErrorKind.SCHEMA, None),
        (lambda: web.Response(text="{torn", content_type="application/json"), ErrorKind.SCHEMA, None),
        (lambda: web.json_response({"error": {"message": KEY, "code": 429}}), ErrorKind.RATE, None),
        (lambda: web.json_response({"error": {"code": "insufficient_quota"}}), ErrorKind.NO_CREDIT, None),
        (lambda: refused(400, "context_length_exceeded", f"{KEY} is too long"), ErrorKind.BAD_REQUEST, None),
        (lambda: refused(401, "invalid_api_key", f"Incorrect key {KEY}"), ErrorKind.BAD_KEY, None),
        (lambda: refused(402), ErrorKind.NO_CREDIT, None),
        (lambda: refused(403), ErrorKind.BAD_KEY, None),
        (lambda: refused(404, "model_not_found"), ErrorKind.SCHEMA, None),
        (lambda: refused(429, headers={"retry-after": "7"}), ErrorKind.RATE, 7.0),
        (lambda: refused(429, headers={"retry-after-ms": "250", "retry-after": "9"}), ErrorKind.RATE, 0.25),
        (lambda: refused(429), ErrorKind.RATE, None),
        (lambda: refused(429, "insufficient_quota"), ErrorKind.NO_CREDIT, None),
        (lambda: refused(503, headers={"retry-after": "3"}), ErrorKind.TRANSIENT, 3.0),
        (lambda: web.Response(status=502, text="<html>bad gateway</html>"), ErrorKind.TRANSIENT, None),
        (lambda: web.Response(status=307, headers={"location": "/v1/chat/completions"}), ErrorKind.SCHEMA, None),
    ],
)
async def test_every_refusal_has_its_kind_its_wait_and_no_second_request(answer, kind, wait):
    error = await problem(answer())
    assert (error.kind, error.retry_after) == (kind, wait)


async def test_a_silent_endpoint_and_nobody_there_may_pass():
    over = asyncio.Event()

    async def silent(request):
        await over.wait()

    async with endpoint(silent, timeout_s=0.05) as (made, _):
        with pytest.raises(ProviderError, match=r"no answer within 0\.05 s") as caught:
            await made.say(ASKED)
        over.set()
    assert caught.value.kind is ErrorKind.TRANSIENT
    made = ChatEndpoint("m", "http://127.0.0.1:9/v1", key_env="")
    with pytest.raises(ProviderError) as caught:
        await made.say(ASKED)
    await made.close()
    assert caught.value.kind is ErrorKind.TRANSIENT


async def test_a_missing_key_names_its_variable(monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ProviderError, match="TEST_KEY") as caught:
        await ChatEndpoint("m", key_env="TEST_KEY").say(ASKED)
    assert caught.value.kind is ErrorKind.BAD_KEY


async def test_the_key_is_in_no_log_repr_or_pickle(caplog):
    caplog.set_level(logging.DEBUG)
    async with endpoint(refused(500, message=f"your key {KEY} is bad")) as (made, seen):
        with pytest.raises(ProviderError):
            await made.say(ASKED)
        assert KEY in seen[0][1]
        assert KEY.encode() not in pickle.dumps(made)
    assert KEY not in caplog.text


async def test_tokens_and_their_price_are_told_to_the_meter_also_of_an_answer_without_use():
    for answer in (completion("x"), completion(None, refusal="no")):
        with metered() as meter:
            async with endpoint(answer, usd_per_million_in=2.0, usd_per_million_out=10.0) as (made, _):
                await asyncio.gather(made.say(ASKED), return_exceptions=True)
        assert meter.tokens == 1000
        assert meter.usd == pytest.approx(900 * 2e-6 + 100 * 10e-6)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": "many"}, "x", [1]])
async def test_an_answer_that_does_not_say_what_it_used_is_an_answer(usage):
    with metered() as meter:
        async with endpoint(completion("x", usage=usage)) as (made, _):
            assert (await made.say(ASKED)).text == "x"
    assert meter.tokens == 0


def test_an_address_is_told_without_what_may_be_secret_in_it(monkeypatch):
    secret = "https://me:word@chat.example:8000/v1/?key=abc"
    assert ChatEndpoint("m", secret).address == "https://chat.example:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://10.0.0.7:8000/v1")
    assert ChatEndpoint("m").address == "http://10.0.0.7:8000/v1"


@pytest.mark.parametrize("kwargs", [{"base_url": "file:///etc"}, {"max_tokens": 0}, {"timeout_s": 0}, {"model": ""}])
def test_what_makes_no_sense_cannot_be_configured(kwargs):
    with pytest.raises(UserError):
        ChatEndpoint(**{"model": "m", **kwargs})
