"""A stream, as OpenAI's own client reads its bytes."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.actors.agent.stage import Ticks, Tools, ask, found, say
from tests.unit.workflows.serve.told import Told, tell
from workflows.serve import errors
from workflows.serve.answers import completion
from workflows.serve.reports import TEXTS
from workflows.serve.stream import DONE, KEEP_ALIVE, ChunkWriter, event, parsed

CITED = "<reason>It is in [1].</reason><answer>Ilse 星 Tarn [1], in 1931</answer>"


TOLD = tell(ask(), CITED, tools=Tools(found("Ilse Tarn")))
ASKED: Any = [{"role": "user", "content": "who?"}]
CHOICE = tell(say(), pace=0).choice


def writer(clock=None, **how) -> ChunkWriter:
    return ChunkWriter("chatcmpl-1", 1763, "demo", clock or Ticks(), **how)


def streamed(told: Told, *, choices: int = 1, **how) -> bytes:
    """The whole stream of an episode, once for each choice, interleaved; nothing is ever due but with an end."""
    w = writer(**how)
    sent = w.begin(choices)
    for report, index in itertools.product(told.reports, range(choices)):
        if report["type"] in TEXTS:
            sent += w.text(index, TEXTS[report["type"]], report["text"])
        else:
            sent += w.step(index, report)
    return sent + b"".join(w.finish(index, told.choice) for index in range(choices)) + w.end()


class Sent(httpx2.AsyncByteStream):
    """A body that comes in pieces, wherever they are cut."""

    def __init__(self, body: bytes, size: int) -> None:
        self._body, self._size = body, size

    async def __aiter__(self):
        for start in range(0, len(self._body), self._size):
            yield self._body[start : start + self._size]


def client(body: bytes, size: int = 1000, media_type: str = "text/event-stream", status: int = 200):
    """OpenAI's client, whose server says this."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers={"content-type": media_type}, stream=Sent(body, size))

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    return openai.AsyncOpenAI(api_key="k", base_url="http://service/v1", http_client=http, max_retries=0)


@dataclass
class Heard:
    """What OpenAI's client made of a stream."""

    chunks: list = field(default_factory=list)
    content: dict[int, str] = field(default_factory=dict)
    reasoning: str = ""
    steps: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    usage: Any = None


async def heard(body: bytes, size: int = 1000) -> Heard:
    result = Heard()
    async with client(body, size) as service:
        stream = await service.chat.completions.create(model="demo", messages=ASKED, stream=True)
        async for chunk in stream:
            result.chunks.append(chunk)
            result.usage = chunk.usage or result.usage
            for choice in chunk.choices:
                delta = choice.delta
                result.content[choice.index] = result.content.get(choice.index, "") + (delta.content or "")
                result.reasoning += getattr(delta, "reasoning_content", "") or ""
                result.notes += getattr(delta, "annotations", None) or []
                if step := getattr(choice, "search_step", None):
                    result.steps.append(step)
                if choice.finish_reason:
                    result.reasons[choice.index] = choice.finish_reason
    return result


# --- through the client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_the_client_reads_content_steps_citations_and_the_end_however_the_bytes_come(size):
    result = await heard(streamed(TOLD, include_usage=True), size)
    assert result.content == {0: TOLD.choice.content}
    assert result.reasoning == TOLD.choice.reasoning
    assert result.steps == TOLD.steps("turn", "search", "result")
    assert result.notes == list(TOLD.choice.annotations)
    assert result.reasons == {0: "stop"}
    assert result.usage.tool_calls == 1
    assert result.usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens
    assert result.chunks[-1].choices == []
    assert result.chunks[-2].choices[0].weights_version == 3
    assert {chunk.object for chunk in result.chunks} == {"chat.completion.chunk"}


def test_citations_come_when_all_that_they_point_into_has_come_and_before_the_end():
    last = [content["choices"][0] for content in parsed(streamed(TOLD))][-2:]
    assert {"annotations", "content"} <= set(last[0]["delta"])
    assert last[1]["delta"] == {}
    assert [choice["finish_reason"] for choice in last] == [None, "stop"]


async def test_usage_comes_only_where_it_was_asked_for_and_keep_alives_are_silence():
    result = await heard(KEEP_ALIVE + streamed(TOLD).replace(DONE, KEEP_ALIVE + DONE))
    assert result.usage is None
    assert result.content == {0: "Ilse 星 Tarn [1], in 1931"}


async def test_choices_are_told_apart_by_their_index_one_in_a_chunk():
    result = await heard(streamed(TOLD, choices=3))
    assert result.content == dict.fromkeys(range(3), TOLD.choice.content)
    assert result.reasons == dict.fromkeys(range(3), "stop")
    assert all(len(chunk.choices) == 1 for chunk in result.chunks)


async def test_the_client_s_own_collector_of_streams_takes_it():
    service = client(streamed(TOLD, include_usage=True))
    async with service, service.chat.completions.stream(model="demo", messages=ASKED) as stream:
        whole = await stream.get_final_completion()
    assert whole.choices[0].message.content == TOLD.choice.content
    assert whole.choices[0].finish_reason == "stop"


async def test_an_error_in_a_stream_is_raised_with_what_it_says_after_what_was_held():
    w = writer()
    body = w.begin(1) + w.text(0, "content", "Il") + w.text(0, "content", "se")
    body += w.failed(errors.unavailable("The engine failed: ask again.", 1.0))
    with pytest.raises(openai.APIError, match="The engine failed: ask again"):
        await heard(body)
    assert [e["choices"][0]["delta"].get("content") for e in parsed(body) if "choices" in e] == ["", "Il", "se"]


async def test_a_stream_that_broke_off_has_no_finish_reason_and_the_client_does_not_mind():
    body = streamed(TOLD)
    for end in (len(body) // 3, len(body) // 2, body.rindex(b'"finish_reason":"stop"')):
        result = await heard(body[:end])
        assert result.reasons == {}


async def test_a_plain_answer_and_a_plain_error_are_read():
    body = json.dumps(completion("chatcmpl-1", 1763, "demo", [TOLD.choice])).encode()
    async with client(body, media_type="application/json") as service:
        read = await service.chat.completions.create(model="demo", messages=ASKED)
    assert read.choices[0].message.content == TOLD.choice.content
    refusal = errors.too_many("Too many.", 2.0)
    async with client(json.dumps(refusal.body).encode(), media_type="application/json", status=429) as service:
        with pytest.raises(openai.RateLimitError) as caught:
            await service.chat.completions.create(model="demo", messages=ASKED)
    assert caught.value.code == refusal.code


# --- what is sent when ------------------------------------------------------------------------------------------

moments = st.lists(
    st.tuples(
        st.floats(0, 0.3),  # seconds since the last
        st.integers(0, 2),  # of which choice
        st.sampled_from(["content", "reasoning_content", "step", "due", "finish"]),
    ),
    max_size=120,
)


@given(moments, st.sampled_from([1.0, 5.0, 20.0]))
def test_text_alone_is_never_sent_more_often_than_allowed_and_nothing_is_lost_or_overtakes(moments, rate):
    clock = Ticks()
    w = writer(clock, events_per_second=rate)
    said, got, text_times = {i: [] for i in range(3)}, {i: [] for i in range(3)}, []
    finished = set()

    def take(sent: bytes) -> None:
        for content in parsed(sent):
            choice = content["choices"][0]
            delta, step = choice["delta"], choice.get("search_step")
            if step is None and choice["finish_reason"] is None:
                text_times.append(clock.now)
            got[choice["index"]] += [(name, c) for name, words in delta.items() for c in words]
            if step is not None:
                got[choice["index"]].append(("step", step["number"]))

    for number, (wait, index, what) in enumerate(moments):
        # a patient server: whoever waits as long as `wait_s` says gets what is due
        until = clock.now + wait
        while (left := w.wait_s) is not None and clock.now + left <= until:
            clock.now += left
            take(w.due())
        clock.now = until
        if index in finished:
            continue
        if what == "step":
            said[index].append(("step", number))
            take(w.step(index, {"type": "turn", "number": number}))
        elif what == "due":
            take(w.due())
        elif what == "finish":
            finished.add(index)
            take(w.finish(index, CHOICE))
        else:
            said[index] += [(what, c) for c in str(number)]
            take(w.text(index, what, str(number)))
    for index in {0, 1, 2} - finished:
        take(w.finish(index, CHOICE))
    assert w.wait_s is None
    for index in range(3):
        # steps are where they were among the texts; between two steps each field keeps its order
        assert by_step(got[index]) == by_step(said[index])
    for first, later in zip(text_times, text_times[int(rate) :], strict=False):
        assert later - first >= 1 - 1e-6


def by_step(told: list) -> list:
    """The texts of each field between steps."""
    parts: list[dict[str, list]] = [{}]
    for kind, what in told:
        if kind == "step":
            parts.append({"step": [what]})
        else:
            parts[-1].setdefault(kind, []).append(what)
    return parts


def test_the_first_words_and_every_step_are_sent_at_once():
    w = writer()
    assert list(parsed(w.text(0, "content", "a")))
    assert w.text(0, "content", "b") == b""
    assert w.wait_s == pytest.approx(0.05)
    (step,) = parsed(w.step(0, {"type": "turn", "number": 1}))
    assert step["choices"][0]["search_step"] == {"type": "turn", "number": 1}
    assert step["choices"][0]["delta"] == {"content": "b"}  # what came before it, read before it
    (step,) = parsed(w.step(0, {"type": "turn", "number": 2}))
    assert step["choices"][0]["delta"] == {}


def test_of_several_choices_the_one_that_waited_longest_is_told_first():
    clock = Ticks()
    w = writer(clock)
    w.text(0, "content", "a")
    for index in (2, 1, 0):
        w.text(index, "content", str(index))
    seen = []
    while w.wait_s is not None:
        clock.now += w.wait_s
        seen += [content["choices"][0]["index"] for content in parsed(w.due())]
    assert seen == [2, 1, 0]


# --- framing ----------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(codec=None)))
def test_an_event_is_one_line_of_utf8_whatever_is_in_it(text):
    sent = event({"choices": [{"delta": {"content": text}}]})
    assert sent.endswith(b"\n\n")
    line = sent[:-2].decode("utf-8")
    assert len(line.splitlines()) == 1
    assert next(iter(parsed(sent)))["choices"][0]["delta"]["content"] == text.encode("utf-8", "replace").decode()


def test_what_looks_like_events_or_line_breaks_in_a_text_is_text():
    text = "a\n\ndata: [DONE]\n\nid: 7\r\revent: error\u2028\u2029\x85\x0b\x0c\x1c\ud800"
    (content,) = parsed(event({"text": text}))
    assert content == {"text": text.replace("\ud800", "?")}
