"""A service with other settings: it has a key, takes one request at a time and lets some wait, cannot search, and
stands behind HAProxy.

The last test ends it, as the others must be over by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.hostile_requests import KEYS, Hostile
from tests.slow.workflows.serve.asking import (
    WITHIN_S,
    counted,
    examples,
    extra,
    messages,
    raw,
    results,
    sent,
    told,
    until,
)
from tests.slow.workflows.serve.conftest import Service, started
from workflows.serve.keys import new_key

QUEUE = 48  # requests that wait: seconds of work, in which a service can be told to end
LONGEST_S = 300.0  # for all of them on a busy machine
BROKEN = "[{path: 'tests.slow.workflows.serve.broken_search:BrokenSearch'}]"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Guarded:
    service: Service
    secret: str
    log: Path

    @property
    def question(self) -> list[dict[str, Any]]:
        return messages(self.service, self.service.about["examples"][0])

    def client(self, seconds: float = WITHIN_S) -> openai.AsyncOpenAI:
        url = f"{self.service.url}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key=self.secret, max_retries=0, timeout=seconds)


@pytest.fixture(scope="module")
def guarded(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    secret, sha256 = new_key()
    log = tmp_path_factory.mktemp("guarded") / "log"
    words = (
        "run.name=guarded",
        "serve.haproxy=true",
        f"serve.keys=[{{name: alice, sha256: {sha256}, requests_per_minute: 1000}}]",
        "serve.episodes=1",
        f"serve.queue={QUEUE}",
        f"serve.request.seconds={LONGEST_S}",
        f"serve.drain_s={LONGEST_S}",
        f"search.text={BROKEN}",
        f"search.image={BROKEN}",
    )
    made = Guarded(started(log, served_run, *words), secret, log)
    with made.service.command:
        yield made


@pytest.mark.parametrize("hostile", KEYS, ids=lambda hostile: hostile.name)
def test_who_has_no_key_is_not_let_in(guarded: Guarded, hostile: Hostile):
    asked = raw("127.0.0.1", hostile.body("guarded"), hostile.headers)
    assert sent(guarded.service.url, asked) in hostile.statuses


def test_a_wrong_key_is_told_in_openais_words(guarded: Guarded):
    headers = {"Authorization": "Bearer mms-guess"}
    nobody = httpx.get(f"{guarded.service.url}/v1/models", headers=headers, timeout=30)
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_over_its_queue_it_refuses_at_once_and_answers_the_others(guarded: Guarded):
    asked, crowd = guarded.question, 2 * QUEUE
    async with guarded.client(LONGEST_S) as ai:
        many = [ai.chat.completions.create(model="guarded", messages=asked) for _ in range(crowd)]
        ended = await asyncio.gather(*many, return_exceptions=True)
    refused = [error for error in ended if isinstance(error, openai.RateLimitError)]
    answered = [one for one in ended if not isinstance(one, BaseException)]
    assert len(answered) >= QUEUE
    assert refused
    assert len(answered) + len(refused) == crowd, ended
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)


async def test_who_cannot_search_answers_and_says_so(guarded: Guarded):
    async with guarded.client() as ai:
        asked = examples(guarded.service)
        answered = [await ai.chat.completions.create(model="guarded", messages=one) for one in asked]
    outcomes = [{result["outcome"] for result in results(one.choices[0])} for one in answered]
    searched = [
        one.choices[0] for one, of in zip(answered, outcomes, strict=True) if of and "policy_error" not in of
    ]  # of the others the model asked for what there is not
    if not searched:
        pytest.fail("the model searched for none of the examples: nothing is known of a search that is down")
    for choice in searched:
        assert extra(choice)["search_unavailable"]
        assert "unavailable" in (choice.message.content or "")


async def test_ctrl_c_lets_nobody_in_and_ends_what_is_under_way(guarded: Guarded):
    service, asked = guarded.service, guarded.question
    ask = {"model": "guarded", "messages": asked}
    ended: list[str] = []

    async def watched(stream: Any) -> str | None:
        reason = await told(await stream)
        ended.append("stream")
        return reason

    async def whole(answer: Any) -> str | None:
        reason = (await answer).choices[0].finish_reason
        ended.append("answer")
        return reason

    async with guarded.client(LONGEST_S) as ai:
        create = ai.chat.completions.create
        under_way = [asyncio.create_task(watched(create(**ask, stream=True))) for _ in range(QUEUE // 2)]
        under_way += [asyncio.create_task(whole(create(**ask))) for _ in range(QUEUE // 2)]
        await until(lambda: running(guarded) >= QUEUE // 2, WITHIN_S)
        service.command.interrupt()
        await until(lambda: draining(guarded), WITHIN_S)
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)) as refused:
            await create(**ask)
        assert len(ended) < QUEUE, "all was answered before the service let nobody in: this says nothing"
        reasons = await asyncio.gather(*under_way, return_exceptions=True)
    assert set(reasons) <= {"stop", "length", "max_turns"}, reasons
    assert sorted(set(ended)) == ["answer", "stream"]
    assert not isinstance(refused.value, openai.InternalServerError) or refused.value.status_code == 503
    await asyncio.to_thread(service.command.ends_with, 0, 120.0)
    assert guarded.secret not in guarded.log.read_text()


def running(guarded: Guarded) -> float:
    return counted(guarded.service, "mmsearch_requests_running", key=guarded.secret)


def draining(guarded: Guarded) -> bool:
    """Whether a request that costs nothing, as it is for a model that there is not, is already not let in."""
    url, headers = f"{guarded.service.url}/v1/chat/completions", {"Authorization": f"Bearer {guarded.secret}"}
    body = {"model": "another", "messages": [{"role": "user", "content": "Who is this?"}]}
    return httpx.post(url, json=body, headers=headers, timeout=30).status_code == 503
