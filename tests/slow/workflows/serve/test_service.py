"""The real service on loopback, asked by the real OpenAI client: what it answers, and what it outlives."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis

from tests.hostile_requests import BODIES, RAW, SERVED, Hostile, Raw
from tests.slow.commands import Command
from tests.slow.workflows.serve.asking import (
    WITHIN_S,
    counted,
    episodes,
    examples,
    extra,
    messages,
    readiness,
    results,
    sent,
    told,
    until,
)
from tests.slow.workflows.serve.conftest import Service

BACK_S = 180.0  # for a replica to be replaced, an engine's start included
LEFT = ("mmsearch_requests_total", 'status="499"')  # requests whose clients left before their end
INGRESS, AGENT, SEARCH = (f"ServeReplica:mmsearch:{name}" for name in ("Ingress", "Agent", "Search"))
pytestmark = pytest.mark.slow


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=WITHIN_S) as made:
        yield made


@pytest.fixture
def question(service: Service) -> list[dict[str, Any]]:
    """The messages of the first example."""
    return messages(service, service.about["examples"][0])


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


@pytest.mark.parametrize("hostile", RAW, ids=lambda hostile: hostile.name)
def test_what_no_client_would_write_is_refused_or_hung_up_on(service: Service, hostile: Raw):
    assert sent(service.url, hostile.data("miniature")) in hostile.statuses


def test_after_all_of_that_it_answers_as_before(client, question):
    assert client.chat.completions.create(model="miniature", messages=question).choices[0].message.content


def test_it_keeps_to_its_own_openapi_document(service: Service):
    document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    checks = schemathesis.checks
    chosen = [checks.not_a_server_error, checks.response_schema_conformance, checks.status_code_conformance]
    for operation in document.get_all_operations():
        for case in cases_of(operation.ok()):
            answer = case.call(base_url=service.url, timeout=WITHIN_S)
            case.validate_response(answer, checks=chosen)


def cases_of(operation: Any) -> list[Any]:
    """Requests that schemathesis makes up, few enough for a suite."""
    from hypothesis import HealthCheck, Phase, given, settings

    made: list[Any] = []

    @settings(max_examples=25, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy())
    def collect(case: Any) -> None:
        made.append(case)

    collect()
    return made


def test_the_command_line_asks_it_and_prints_its_answer(service: Service, tmp_path: Path):
    with Command(tmp_path / "log", "ask", "--url", service.url, "--example", "0", *service.words) as ask:
        said = ask.ends_with(0, WITHIN_S)
    answer = re.search(r"^(?:answer|no answer): (.+)$", said, re.MULTILINE)
    assert answer, said
    assert re.search(r"^\d+ searches, [1-9]\d* tokens", said, re.MULTILINE), said


# --- what it outlives -------------------------------------------------------------------------------------------------


def client_of(service: Service, seconds: float = WITHIN_S) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="-", max_retries=0, timeout=seconds)


async def test_a_client_that_leaves_takes_its_episode_along(service: Service, question):
    async with httpx.AsyncClient(timeout=WITHIN_S) as leaving:
        body = {"model": "miniature", "messages": question, "stream": True}
        async with leaving.stream("POST", f"{service.url}/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_bytes())
    await until(lambda: episodes(service.url) == 0, 20.0)
    assert readiness(service.url)["requests"] == 0


async def test_who_leaves_while_a_whole_answer_is_made_takes_it_along(service: Service, question):
    before = counted(service, *LEFT)
    body = {"model": "miniature", "messages": question, "n": 4, "temperature": 1.0}
    async with httpx.AsyncClient(timeout=WITHIN_S) as leaving:  # as many episodes as last until they are seen
        asking = [asyncio.create_task(leaving.post(f"{service.url}/v1/chat/completions", json=body)) for _ in range(6)]
        await until(lambda: counted(service, "mmsearch_requests_running") > 0, WITHIN_S)
        for task in asking:
            task.cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
    gone = sum(isinstance(one, asyncio.CancelledError) for one in ended)
    assert gone, "all were answered before anybody could leave"
    await until(lambda: (episodes(service.url), readiness(service.url)["requests"]) == (0, 0), 20.0)
    assert counted(service, *LEFT) > before  # the service knows: they did not just come to their end


async def test_new_weights_come_under_running_requests_and_none_fails(service: Service, question, tmp_path: Path):
    versions, failed, stop = set(), [], asyncio.Event()

    async def keep_asking() -> None:
        async with client_of(service) as ai:
            while not stop.is_set():
                try:
                    found = await ai.chat.completions.create(model="miniature", messages=question)
                    versions.add(extra(found.choices[0])["weights_version"])
                except openai.OpenAIError as error:
                    failed.append(repr(error))

    asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
    version = await updated(service, "sft", tmp_path / "update")
    await until(lambda: version in versions, WITHIN_S)
    stop.set()
    await asyncio.gather(*asking)
    assert not failed
    assert service.about["version"] == version


async def updated(service: Service, checkpoint: str, log: Path) -> int:
    """The version that the service runs from now on, one more than before."""
    version = int(service.about["version"]) + 1
    with Command(log, "serve", "update", "--checkpoint", checkpoint, *service.words) as update:
        said = await asyncio.to_thread(update.ends_with, 0, BACK_S)
    assert f"version {version} runs everywhere" in said
    return version


def test_weights_of_another_model_are_refused_before_anything_changes(service: Service, tmp_path: Path):
    with Command(tmp_path / "log", "serve", "update", "--checkpoint", "/nowhere", *service.words) as update:
        assert "There is no model at /nowhere" in update.ends_with(2, 120.0)


async def test_an_agent_that_is_killed_is_replaced_and_nobody_waits_for_ever(service: Service, question, tmp_path):
    version = await updated(service, "rl", tmp_path / "update")
    (agent,) = service.command.workers(AGENT)
    async with client_of(service) as ai:
        stream = await ai.chat.completions.create(model="miniature", messages=question, stream=True)
        agent.send_signal(signal.SIGKILL)
        ended = await asyncio.wait_for(asyncio.gather(told(stream), return_exceptions=True), WITHIN_S)
        assert ended[0] in ("stop", "length", "max_turns") or isinstance(ended[0], openai.APIError)
        await until(lambda: any(one["healthy"] for one in readiness(service.url)["replicas"]), BACK_S)
        found = await ai.chat.completions.create(model="miniature", messages=question)
    assert found.choices[0].message.content
    assert extra(found.choices[0])["weights_version"] == version  # who comes late runs what the others run
    assert [(one["version"], one["healthy"]) for one in readiness(service.url)["replicas"]] == [(version, True)]
    assert agent.pid not in [one.pid for one in service.command.workers(AGENT)]


async def test_a_search_that_is_killed_costs_searches_and_no_answer(service: Service):
    (search,) = service.command.workers(SEARCH)
    asked = examples(service)
    async with client_of(service, BACK_S) as ai:
        many = [ai.chat.completions.create(model="miniature", messages=one) for one in 3 * asked]
        asking = [asyncio.create_task(one) for one in many]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        search.send_signal(signal.SIGKILL)
        ended = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), BACK_S)
        assert [one for one in ended if isinstance(one, BaseException)] == []
        await until(lambda: replaced(service, SEARCH, search.pid), BACK_S)
        again = [await ai.chat.completions.create(model="miniature", messages=one) for one in asked]
    found = [result for one in again for result in results(one.choices[0])]
    if not found:
        pytest.fail("the model searched for none of the examples: nothing is known of a search that is replaced")
    assert "ok" in {result["outcome"] for result in found}


async def test_what_an_ingress_had_that_is_killed_ends_with_an_error_and_the_next_one_answers(service: Service):
    (ingress,) = service.command.workers(INGRESS)
    asked = examples(service)
    async with client_of(service, BACK_S) as ai:
        stream = await ai.chat.completions.create(model="miniature", messages=asked[0], stream=True)
        many = [ai.chat.completions.create(model="miniature", messages=one) for one in 4 * asked]
        asking = [asyncio.create_task(one) for one in (told(stream), *many)]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        ingress.send_signal(signal.SIGKILL)
        ended = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), BACK_S)
        errors = [one for one in ended if isinstance(one, BaseException)]
        assert errors, "all were answered before the ingress died"
        # A connection that ends is what is left of an answer that was cut in its midst: few, if any.
        told_so = [one for one in errors if not isinstance(one, openai.APIConnectionError)]
        assert len(told_so) > len(errors) / 2
        for one in told_so:
            assert isinstance(one, openai.APIError)
            assert isinstance(one.body, dict), f"not in OpenAI's shape: {one!r}"
            assert set(one.body) == {"message", "type", "param", "code"}
        await until(lambda: replaced(service, INGRESS, ingress.pid), BACK_S)
        again = await ai.chat.completions.create(model="miniature", messages=asked[0])
    assert again.choices[0].message.content


def replaced(service: Service, kind: str, pid: int) -> bool:
    """Whether there is a replica of that kind, and it is another one."""
    pids = [one.pid for one in service.command.workers(kind)]
    return bool(pids) and pid not in pids
