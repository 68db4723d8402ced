"""The clients of the bench, against a service on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from itertools import pairwise

import pytest

from tests.unit.workflows.loopback_service import MODEL, Reply, episode, error_body, service
from workflows.bench import serve_load
from workflows.bench.serve_exchange import Outcome
from workflows.bench.serve_load import ChatClient, Crowd, arrivals, chat_body, crowded, offered, one_by_one

PNG = b"\x89PNG picture"
STREAMED = chat_body(MODEL, "who?", [PNG], stream=True, seconds=5.0)


def test_a_request_is_greedy_and_holds_pictures_then_the_question_and_its_deadline():
    body = json.loads(chat_body("m", "who?", [PNG, b"\xff\xd8jpeg"], stream=False, seconds=7.0))
    *pictures, text = body["messages"][0]["content"]
    assert [one["image_url"]["url"].partition(",")[0] for one in pictures] == [
        "data:image/png;base64", "data:image/jpeg;base64",
    ]  # fmt: skip
    assert base64.b64decode(pictures[0]["image_url"]["url"].partition(",")[2]) == PNG
    assert (text["text"], body["temperature"], body["limits"]) == ("who?", 0, {"seconds": 7.0})
    assert "stream" not in body


async def test_every_request_becomes_one_exchange_whatever_becomes_of_it(monkeypatch):
    monkeypatch.setattr(serve_load, "GRACE_S", 0.0)
    replies = iter(
        [
            Reply(episode()),
            Reply([error_body("full")], 429, {"Retry-After": "1"}),
            Reply([error_body("dead")], 503),
            Reply(episode()[:4], cut=True),
            Reply([b"data: {\n\n"]),
            Reply([b'data: {"choices": [7]}\n\n']),
            Reply(episode(), between_s=30.0),
        ]
    )
    with service(lambda _: next(replies)) as server:
        async with ChatClient(server.url, 1.0) as client:
            assert await client.model() == MODEL
            told = await one_by_one(client, [STREAMED] * 7)
    assert [one.outcome.value for one in told] == [
        "answered", "refused", "failed", "failed", "failed", "failed", "hung",
    ]  # fmt: skip
    assert all(one.began <= one.ended for one in told)
    assert told[-1].seconds < 10


async def test_where_nobody_listens_every_request_fails():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with ChatClient(f"http://127.0.0.1:{nobody.getsockname()[1]}", 1.0) as client:
            one = await client.ask(STREAMED)
    assert (one.outcome, one.status) == (Outcome.FAILED, 0)
    assert one.problem.startswith("Client")


async def test_the_key_goes_with_every_request():
    with service(Reply(episode())) as server:
        async with ChatClient(server.url, 5.0, "mms-key") as client:
            await client.ask(STREAMED)
        assert server.seen[0][1]["Authorization"] == "Bearer mms-key"


async def test_a_crowd_never_has_more_under_way_than_it_has_clients_and_ends_what_it_began():
    under_way = most = asked = 0
    lock = threading.Lock()

    def reply(_):
        nonlocal asked
        with lock:
            asked += 1
        return Reply(episode(), between_s=0.002)

    with service(reply) as server:
        async with ChatClient(server.url, 20.0) as client:
            ask = client.ask

            async def counted(body):
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                try:
                    return await ask(body)
                finally:
                    under_way -= 1

            client.ask = counted  # type: ignore[method-assign]
            async with Crowd(client, [STREAMED], 3) as crowd:
                while len(crowd.exchanges) < 6:
                    await asyncio.sleep(0.01)
    assert (most, under_way) == (3, 0)
    assert len(crowd.exchanges) == asked
    assert {one.outcome for one in crowd.exchanges} == {Outcome.ANSWERED}


async def test_a_client_that_is_refused_waits_before_it_asks_again(monkeypatch):
    monkeypatch.setattr(serve_load, "AFTER_REFUSAL_S", 10.0)
    with service(Reply([error_body("full")], 429)) as server:
        async with ChatClient(server.url, 5.0) as client:
            task = asyncio.create_task(crowded(client, [STREAMED], 2, 60.0))
            while len(server.seen) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert len(server.seen) == 2
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_requests_come_whether_or_not_others_were_answered():
    with service(Reply(episode(), between_s=0.05)) as server:  # half a second each
        async with ChatClient(server.url, 20.0) as client:
            load, unsent = await offered(client, [STREAMED], per_second=100.0, seconds=0.3, most=1000)
    assert unsent == 0
    assert len(load) == len(list(arrivals(100.0, 0.3)))
    assert all(one.outcome is Outcome.ANSWERED for one in load)


async def test_what_would_be_too_many_is_not_sent_and_is_counted():
    with service(Reply(episode(), between_s=0.05)) as server:
        async with ChatClient(server.url, 20.0) as client:
            load, unsent = await offered(client, [STREAMED], per_second=100.0, seconds=0.3, most=5)
    assert unsent > 0
    assert len(load) + unsent == len(list(arrivals(100.0, 0.3)))


def test_arrivals_are_as_many_as_were_asked_for_and_independent():
    times = list(arrivals(50.0, 200.0, seed=1))
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = [after - before for before, after in pairwise(times)]
    assert sum(gap > 0.04 for gap in gaps) / len(gaps) == pytest.approx(0.135, abs=0.02)  # exp(-2)
    assert times == list(arrivals(50.0, 200.0, seed=1))
