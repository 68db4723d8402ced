"""The service's routes on a scripted agent: Ray Serve's handles in this process, no cluster, no engine."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from ray import serve

from workflows.serve import errors
from workflows.serve.about import Example
from workflows.serve.answers import Answered
from workflows.serve.api import build
from workflows.serve.ingress import Ingress
from workflows.serve.keys import digest
from workflows.serve.orders import Standing
from workflows.serve.settings import KeySettings, RequestSettings, ServeSettings
from workflows.serve.stream import parsed
from workflows.serve.till import Till

KEY = "mms-a-key-of-this-test"
HELD_S = 30.0  # longer than any test waits


def answer(content="It is Tarn [1]", **changes):
    told = dict(
        content=content, reasoning="", finish_reason="stop", annotations=(), steps=({"type": "turn", "number": 1},),
        question_tokens=5, found_tokens=0, completion_tokens=7, tool_calls=1, cost_usd=0.5, version=3,
        search_unavailable=False,
    )  # fmt: skip
    return Answered(**told | changes)


class ScriptedAgent:
    """Does what the question says."""

    async def play(self, order):
        if order.text == "refuse at once":
            raise errors.invalid("The question cannot be asked: it is one of a test.", "messages")
        yield [{"type": "turn", "number": 1}, {"type": "content", "text": "It is "}]
        yield [{"type": "content", "text": "Tarn [1]"}, {"type": "end", "choice": await self.answer(order)}]

    async def answer(self, order):
        if order.text == "refuse":
            raise errors.invalid("The question cannot be asked: it is one of a test.", "messages")
        if order.text == "one is refused, others wait":
            if order.index == 1:
                raise errors.invalid("The question cannot be asked: it is one of a test.", "messages")
            await asyncio.sleep(HELD_S)
        if order.text == "bug":
            raise ZeroDivisionError("a secret of somebody else")
        if order.text == "wait":
            await asyncio.sleep(HELD_S)
        if order.text == "break off":
            raise errors.unavailable("The engine failed while it answered: ask again.", 1.0)
        return answer()

    async def standing(self):
        return Standing(version=3, checkpoint="/somewhere", healthy=True, episodes=0)


@pytest.fixture(scope="module")
def agent():
    deployment: Any = serve.deployment(ScriptedAgent)
    made = deployment.options(name="Agent")
    handle = serve.run(made.bind(), name="scripted", route_prefix=None, _local_testing_mode=True)
    return handle


@pytest.fixture
def client(agent, tmp_path):
    def make(**settings):
        chosen = ServeSettings(**settings)
        ingress = Ingress(chosen, "tiny", agent, Till(chosen.keys, str(tmp_path)))
        app = build(ingress, chosen, lambda version: {"version": version}, [Example("q", b"png", "image/png")])
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        made = httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")
        made.ingress = ingress
        return made

    return make


def request(text="who?", **more):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


async def chat(client, text="who?", headers=None, **more):
    return await client.post("/v1/chat/completions", json=request(text, **more), headers=headers or {})


async def until(look, wanted):
    async with asyncio.timeout(10.0):
        while await look() != wanted:
            await asyncio.sleep(0)


async def under_way(client):
    return (await client.get("/readyz")).json()["requests"]


def error_of(response, status):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return response.json()["error"]


async def test_a_question_is_answered(client):
    found = (await chat(client())).json()
    assert found["choices"][0]["message"]["content"] == "It is Tarn [1]"
    assert found["usage"]["tool_calls"] == 1


async def test_a_stream_tells_step_by_step_and_ends_with_done(client):
    response = await chat(client(), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    choices = [chunk["choices"][0] for chunk in parsed(response.content)]
    assert [one["search_step"]["type"] for one in choices if "search_step" in one] == ["turn"]
    assert "".join(one["delta"].get("content", "") for one in choices) == "It is Tarn [1]"
    assert choices[-1]["finish_reason"] == "stop"
    assert response.content.endswith(b"data: [DONE]\n\n")


async def test_several_choices_are_several_episodes(client):
    found = (await chat(client(), n=3)).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]


async def test_what_cannot_be_asked_is_an_error_with_its_own_status(client):
    assert "cannot be asked" in error_of(await chat(client(), "refuse"), 400)["message"]


async def test_a_stream_that_cannot_be_begun_is_an_error_with_its_own_status(client):
    assert "cannot be asked" in error_of(await chat(client(), "refuse at once", stream=True), 400)["message"]


async def test_a_bug_tells_nothing_of_itself(client):
    assert "secret" not in error_of(await chat(client(), "bug"), 500)["message"]
    assert b"secret" not in (await chat(client(), "bug", stream=True)).content


async def test_a_stream_that_dies_says_so_and_has_no_end(client):
    response = await chat(client(), "break off", stream=True)
    events = list(parsed(response.content))
    assert events[-1]["error"]["code"] == "service_unavailable"
    assert not any(choice["finish_reason"] for event in events[:-1] for choice in event["choices"])


async def test_a_request_ends_in_its_time_whatever_its_agent_does(client, monkeypatch):
    monkeypatch.setattr("workflows.serve.ingress.GRACE_S", 0.0)
    response = await chat(client(), "wait", limits={"seconds": 0.05})
    assert error_of(response, 503)["message"] == "The agent did not end in time."


async def test_a_client_that_leaves_takes_its_episode_along(client, agent):
    ours = client()
    asked = asyncio.create_task(chat(ours, "wait", stream=True))
    await until(lambda: under_way(ours), 1)
    asked.cancel()
    await until(lambda: under_way(ours), 0)


async def test_a_service_that_stops_lets_nobody_in_and_says_when_it_is_idle(client):
    ours = client()
    await ours.ingress.reconfigure({"draining": True})
    assert "stopping" in error_of(await chat(ours), 503)["message"]
    ready = await ours.get("/readyz")
    assert (ready.status_code, ready.json()["draining"], ready.json()["requests"]) == (503, True, 0)


async def test_nobody_comes_in_without_a_key_where_there_are_keys(client):
    known = client(keys=[KeySettings("alice", digest(KEY))])
    for headers in ({}, {"authorization": "Bearer mms-other"}, {"authorization": f"Basic {KEY}"}):
        error_of(await chat(known, headers=headers), 401)
    assert (await chat(known, headers={"authorization": f"Bearer {KEY}"})).status_code == 200
    for path in ("/v1/models", "/metrics"):
        error_of(await known.get(path), 401)
    assert (await known.get("/healthz")).status_code == 200


async def test_a_key_that_has_spent_its_budget_is_told_not_to_try_again(client):
    known = client(keys=[KeySettings("alice", digest(KEY), usd_per_day=0.4)])
    headers = {"authorization": f"Bearer {KEY}"}
    assert (await chat(known, headers=headers)).status_code == 200
    known.ingress.till.charge("alice", 0.5)
    await known.ingress.till.settled()
    assert error_of(await chat(known, headers=headers), 429)["code"] == "insufficient_quota"


async def test_a_body_over_the_bound_is_refused_whatever_length_it_claims(client):
    small = client(request=RequestSettings(body_mib=0.001))

    async def pieces():
        for _ in range(100):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    error_of(await small.post("/v1/chat/completions", content=pieces(), headers=headers), 413)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "", "application/jsonp"])
async def test_what_a_form_of_a_foreign_page_could_send_is_refused(client, kind):
    body = json.dumps(request()).encode()
    response = await client().post("/v1/chat/completions", content=body, headers={"content-type": kind})
    error_of(response, 415)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999"])
async def test_a_page_of_another_origin_is_kept_out(client, origin):
    assert error_of(await chat(client(), headers={"origin": origin}), 403)["code"] == "forbidden_origin"


@pytest.mark.parametrize("origin", ["http://localhost:8000", "https://ours.example"])
async def test_our_own_page_and_named_origins_are_let_in(client, origin):
    named = client(origins=["https://ours.example"])
    assert (await chat(named, headers={"origin": origin})).status_code == 200


async def test_cors_is_granted_to_named_origins_alone(client):
    named = client(origins=["https://ours.example"])
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for origin, granted in (("https://ours.example", "https://ours.example"), ("https://evil.example", None)):
        answered = await named.options("/v1/chat/completions", headers={"origin": origin, **ask})
        assert answered.headers.get("access-control-allow-origin") == granted


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:8000"])
async def test_without_keys_a_name_that_somebody_else_points_here_is_refused(client, host):
    assert error_of(await chat(client(), headers={"host": host}), 403)["code"] == "forbidden_host"


@pytest.mark.parametrize("path", ["/about", "/examples/0", "/readyz", "/metrics", "/v1/models", "/"])
async def test_no_route_answers_to_a_foreign_name_or_page(client, path):
    assert (await client().get(path, headers={"host": "evil.example"})).status_code == 403
    assert (await client().get(path, headers={"origin": "https://evil.example"})).status_code == 403


async def test_without_keys_nobody_is_let_in_from_another_machine_whatever_host_it_names(client):
    ours = client()
    ours._transport.client = ("192.0.2.7", 5555)
    assert error_of(await chat(ours), 403)["code"] == "forbidden_host"


@pytest.mark.parametrize("header", ["x-request-timeout-seconds", "X-Request-Disconnect-Disabled"])
async def test_headers_that_would_switch_off_what_guards_us_are_refused(client, header):
    assert error_of(await chat(client(), headers={header: "0"}), 400)["code"] == "forbidden_header"


async def test_a_body_that_does_not_come_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr("workflows.serve.api.BODY_S", 0.02)

    async def trickle():
        while True:
            yield b" "
            await asyncio.sleep(0.005)

    headers = {"content-type": "application/json"}
    error_of(await client().post("/v1/chat/completions", content=trickle(), headers=headers), 408)


async def test_of_several_choices_one_refusal_is_told_at_once(client):
    response = await asyncio.wait_for(chat(client(), "one is refused, others wait", n=3), 5.0)
    error_of(response, 400)


async def left(ours, waiting):
    """Those who wait have gone, and nothing of them is left."""
    for task in waiting:
        task.cancel()
    await until(lambda: under_way(ours), 0)
    assert (await chat(ours)).status_code == 200


async def test_a_burst_is_let_in_as_far_as_there_is_room_and_what_is_over_it_refused(client):
    ours = client(episodes=3, queue=1)
    waiting = [asyncio.create_task(chat(ours, "wait")) for _ in range(4)]
    await until(lambda: under_way(ours), 4)
    refused = await chat(ours)
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    await left(ours, waiting)


async def test_who_finds_no_room_is_refused_before_its_pictures_are_looked_at(client):
    ours = client(episodes=1, queue=1)
    unreadable = [
        {"type": "text", "text": "who?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
    ]
    error_of(await chat(ours, unreadable), 400)
    waiting = [asyncio.create_task(chat(ours, "wait")) for _ in range(2)]
    await until(lambda: under_way(ours), 2)
    error_of(await chat(ours, unreadable), 429)
    await left(ours, waiting)


async def test_each_choice_takes_room_streamed_or_not_and_gives_it_back(client):
    ours = client(episodes=3, queue=1)
    assert (await chat(ours, n=3)).status_code == 200
    assert (await chat(ours, n=3, stream=True)).status_code == 200
    waiting = [asyncio.create_task(chat(ours, "wait", stream=True)) for _ in range(2)]
    await until(lambda: under_way(ours), 2)
    assert (await chat(ours, n=3)).status_code == 429
    assert (await chat(ours, n=2)).status_code == 200
    await left(ours, waiting)


async def test_more_requests_than_there_are_places_for_are_refused_at_the_door(client):
    async def unending():
        while True:
            yield b" "
            await asyncio.sleep(0.005)

    ours = client(episodes=1, queue=1)  # four places, for those included whose bodies are still on their way
    headers = {"content-type": "application/json"}
    waiting = [
        asyncio.create_task(ours.post("/v1/chat/completions", content=unending(), headers=headers)) for _ in range(4)
    ]
    await until(lambda: under_way(ours), 4)
    assert int((await chat(ours)).headers["retry-after"]) >= 1
    await left(ours, waiting)


@pytest.mark.parametrize(("agents", "ingresses", "room"), [(1, 1, 40), (2, 1, 72), (3, 2, 56)])
def test_the_room_of_an_ingress_is_its_share_of_the_agents_and_its_queue(agents, ingresses, room):
    assert ServeSettings(episodes=32, queue=8, agents=1, max_agents=agents, ingresses=ingresses).room == room


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
async def test_this_machine_is_let_in_by_any_of_its_names(client, host):
    assert (await chat(client(), headers={"host": host})).status_code == 200


async def test_health_readiness_models_metrics_and_page_answer(client):
    ours = client()
    assert (await ours.get("/healthz")).json() == {"status": "ok"}
    ready = await ours.get("/readyz")
    assert ready.json()["replicas"] == [{"version": 3, "healthy": True, "refused": None, "episodes": 0}]
    assert "/somewhere" not in ready.text
    assert (await ours.get("/v1/models")).json()["data"][0]["id"] == "tiny"
    await chat(ours)
    assert 'mmsearch_requests_total{key="anybody",status="200"} 1.0' in (await ours.get("/metrics")).text
    assert (await ours.get("/about")).json() == {"version": 3}
    assert "<html" in (await ours.get("/")).text
    assert (await ours.get("/examples/0")).content == b"png"


@pytest.mark.parametrize("path", ["/nothing", "/docs", "/redoc", "/examples/1", "/page/..%2f..%2fsettings.py"])
async def test_what_is_not_there_is_not_there(client, path):
    assert (await client().get(path)).status_code == 404


async def test_a_method_that_is_not_taken_is_an_error_of_openais_shape(client):
    error_of(await client().get("/v1/chat/completions"), 405)
