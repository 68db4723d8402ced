"""The real service on loopback, asked by the real OpenAI client: what it answers, and what it outlives."""

from __future__ import annotations

import asyncio
import base64
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis

from tests.hostile_requests import BODIES, SERVED, Hostile
from tests.slow.commands import Command
from tests.slow.workflows.serve.conftest import Service, started

WITHIN_S = 60.0  # for a request on a busy machine
pytestmark = pytest.mark.slow


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=WITHIN_S) as made:
        yield made


@pytest.fixture
def question(service: Service) -> list[dict[str, Any]]:
    """The messages of the first example."""
    return messages(service, service.about["examples"][0])


def messages(service: Service, example: dict[str, Any]) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{service.url}/{example['picture']}", timeout=30) as answer:
        picture = f"data:image/png;base64,{base64.b64encode(answer.read()).decode()}"
    content = [{"type": "text", "text": example["question"]}, {"type": "image_url", "image_url": {"url": picture}}]
    return [{"role": "user", "content": content}]


def extra(model: Any) -> dict[str, Any]:
    """The fields that OpenAI's types do not know."""
    return model.model_extra or {}


def readiness(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/readyz", timeout=30).json()


async def until(look: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.2)


# --- what it answers --------------------------------------------------------------------------------------------------


def test_the_openai_client_gets_an_answer_with_its_searches_and_its_cost(client, question):
    found = client.chat.completions.create(model="miniature", messages=question)
    choice = found.choices[0]
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length", "max_turns")
    kinds = [step["type"] for step in choice.model_extra["search_steps"]]
    assert kinds[0] == "turn"
    assert kinds.count("search") == kinds.count("result")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert {"tool_calls", "cost_usd"} <= set(found.usage.model_extra)


def test_a_stream_tells_the_same_as_the_whole_answer(client, question):
    whole = client.chat.completions.create(model="miniature", messages=question).choices[0]
    content, steps, reasons = "", [], []
    for chunk in client.chat.completions.create(model="miniature", messages=question, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        steps += [choice.model_extra["search_step"]] if "search_step" in choice.model_extra else []
        reasons.append(choice.finish_reason)
    assert content == whole.message.content
    assert reasons[-1] == whole.finish_reason
    assert steps == [step for step in unhurried(whole.model_extra["search_steps"]) if step["type"] != "reasoning"] or (
        unhurried(steps) == [s for s in unhurried(whole.model_extra["search_steps"]) if s["type"] != "reasoning"]
    )


def unhurried(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs from time to time: how long a search took, and whether somebody had asked it before."""
    return [{key: value for key, value in step.items() if key not in ("seconds", "cached")} for step in steps]


def test_an_answer_without_searching_has_none(client, question):
    found = client.chat.completions.create(model="miniature", messages=question, tool_choice="none")
    assert found.usage.model_extra["tool_calls"] == 0
    assert not [s for s in found.choices[0].model_extra["search_steps"] if s["type"] == "result"]


def test_a_request_that_has_no_time_ends_with_that_reason(client, question):
    extra = {"limits": {"seconds": 0.01}}
    choice = client.chat.completions.create(model="miniature", messages=question, extra_body=extra).choices[0]
    assert choice.finish_reason == "max_seconds"
    assert choice.message.content


def test_another_model_than_the_one_here_is_not_found(client, question):
    with pytest.raises(openai.NotFoundError, match="miniature"):
        client.chat.completions.create(model="gpt-5", messages=question)


@pytest.mark.parametrize("hostile", [*BODIES, *SERVED], ids=lambda hostile: hostile.name)
def test_what_is_hostile_is_refused(service: Service, hostile: Hostile):
    answer = httpx.post(
        f"{service.url}/v1/chat/completions",
        content=hostile.body("miniature"),
        headers=list(hostile.headers),
        timeout=WITHIN_S,
    )
    assert answer.status_code in hostile.statuses, answer.text[:300]


def test_after_all_of_that_it_answers_as_before(client, question):
    assert client.chat.completions.create(model="miniature", messages=question).choices[0].message.content


def test_it_keeps_to_its_own_openapi_document(service: Service):
    document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    checks = schemathesis.checks
    chosen = [checks.not_a_server_error, checks.response_schema_conformance, checks.status_code_conformance]
    for operation in document.get_all_operations():
        for case in examples_of(operation.ok()):
            answer = case.call(base_url=service.url, timeout=WITHIN_S)
            if case.path != "/readyz":
                case.validate_response(answer, checks=chosen)


def examples_of(operation: Any) -> list[Any]:
    """Requests that schemathesis makes up, few enough for a suite."""
    from hypothesis import HealthCheck, Phase, given, settings

    made: list[Any] = []

    @settings(max_examples=25, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy())
    def collect(case: Any) -> None:
        made.append(case)

    collect()
    return made


# --- what it outlives -------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_takes_its_episode_along(service: Service, question):
    async with httpx.AsyncClient(timeout=WITHIN_S) as leaving:
        body = {"model": "miniature", "messages": question, "stream": True}
        async with leaving.stream("POST", f"{service.url}/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_bytes())
    await until(lambda: all(one["episodes"] == 0 for one in readiness(service.url)["replicas"]), 20.0)
    assert readiness(service.url)["requests"] == 0


async def test_new_weights_come_under_running_requests_and_none_fails(service: Service, question, tmp_path: Path):
    versions, failed, stop = set(), [], asyncio.Event()

    async def keep_asking() -> None:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="-", max_retries=0, timeout=WITHIN_S) as ai:
            while not stop.is_set():
                try:
                    found = await ai.chat.completions.create(model="miniature", messages=question)
                    versions.add(extra(found.choices[0])["weights_version"])
                except openai.OpenAIError as error:
                    failed.append(repr(error))

    asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
    before = service.about["version"]
    with Command(tmp_path / "update", "serve", "update", "--checkpoint", "sft", *service.words) as update:
        await asyncio.to_thread(update.ends_with, 0, 180.0)
    await until(lambda: before + 1 in versions, WITHIN_S)
    stop.set()
    await asyncio.gather(*asking)
    assert not failed
    assert service.about["version"] == before + 1


def test_weights_of_another_model_are_refused_before_anything_changes(service: Service, tmp_path: Path):
    with Command(tmp_path / "log", "serve", "update", "--checkpoint", "/nowhere", *service.words) as update:
        assert "There is no model at /nowhere" in update.ends_with(2, 120.0)


async def test_an_agent_that_is_killed_is_replaced_and_nobody_waits_for_ever(service: Service, question):
    (agent,) = service.command.workers("ServeReplica:mmsearch:Agent")
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="-", max_retries=0, timeout=WITHIN_S) as ai:
        stream = await ai.chat.completions.create(model="miniature", messages=question, stream=True)
        agent.send_signal(signal.SIGKILL)
        ended = await asyncio.wait_for(asyncio.gather(told(stream), return_exceptions=True), WITHIN_S)
        assert ended[0] in ("stop", "length", "max_turns") or isinstance(ended[0], openai.APIError)
        found = await ai.with_options(timeout=180.0).chat.completions.create(model="miniature", messages=question)
    assert found.choices[0].message.content


async def told(stream: Any) -> str | None:
    reason = None
    async for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
    return reason


def test_keys_a_full_queue_and_tools_that_are_down(served_run: Path, tmp_path: Path):
    """One more service for what one with other settings does: it has a key, takes one request, and cannot search."""
    from workflows.serve.keys import new_key

    secret, sha256 = new_key()
    log = tmp_path / "log"
    words = (
        "run.name=guarded",
        f"serve.keys=[{{name: alice, sha256: {sha256}}}]",
        "serve.episodes=1",
        "serve.queue=1",
        "search.text=[{path: 'tests.slow.workflows.serve.broken_search:BrokenSearch'}]",
        "search.image=[{path: 'tests.slow.workflows.serve.broken_search:BrokenSearch'}]",
    )
    guarded = started(log, served_run, *words)
    with guarded.command:
        nobody = httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": "Bearer mms-guess"}, timeout=30)
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")
        asyncio.run(full_and_down(guarded, secret))
        guarded.command.interrupt()
        guarded.command.ends_with(0, 120.0)
    assert secret not in log.read_text()


async def full_and_down(guarded: Service, secret: str) -> None:
    asked = messages(guarded, guarded.about["examples"][0])
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key=secret, max_retries=0, timeout=WITHIN_S) as ai:
        many = [ai.chat.completions.create(model="guarded", messages=asked) for _ in range(12)]
        ended = await asyncio.gather(*many, return_exceptions=True)
    refused = [error for error in ended if isinstance(error, openai.RateLimitError)]
    answered = [one for one in ended if not isinstance(one, BaseException)]
    assert answered
    assert refused
    assert len(answered) + len(refused) == 12, ended
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    for one in answered:
        choice = one.choices[0]
        steps = extra(choice)["search_steps"]
        if any(step["type"] == "result" for step in steps):
            assert extra(choice)["search_unavailable"]
            assert "unavailable" in (choice.message.content or "")
