"""What every adapter does alike: good answers, empty ones, and all the ways in which the web fails."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import traceback
from contextlib import asynccontextmanager, suppress

import pytest

from actors.search.metering import metered
from actors.search.providers.jina import JinaReader
from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError
from tests.unit.actors.search.providers.documented import BAD_KEY, CASES, KEY, RATE, SCHEMA, TRANSIENT, asked, echoes
from tests.unit.actors.search.providers.loopback import HTML, Reply, loopback

ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SEARCHES = pytest.mark.parametrize("case", [case for case in CASES if case.name != "jina"], ids=lambda case: case.name)
KEYED = pytest.mark.parametrize("case", [case for case in CASES if case.key_env], ids=lambda case: case.name)
EACH_FAILURE = pytest.mark.parametrize(
    ("case", "failure"),
    [
        pytest.param(case, failure, id=f"{case.name}-{number}-{failure.kind}")
        for case in CASES
        for number, failure in enumerate(case.failures)
    ],
)


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for case in CASES:
        if case.key_env:
            monkeypatch.setenv(case.key_env, KEY)


@asynccontextmanager
async def endpoint(case, *replies, **kwargs):
    """The provider on loopback and its adapter, both closed at the end."""
    async with loopback(case.accepts, case.aside) as server:
        server.replies = list(replies)
        adapter = case.make(server.url, **kwargs)
        try:
            yield server, adapter
        finally:
            await adapter.close()


async def refusal(adapter) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await asked(adapter)
    return caught.value


# --- answers ------------------------------------------------------------------------------------------------


@ALL
async def test_a_good_answer_is_read_and_asked_for_as_documented(case):
    async with endpoint(case) as (server, adapter):
        assert await asked(adapter) == case.found
        assert await asked(adapter) == case.found
    searches = [seen for seen in server.seen if seen.path != case.aside]
    assert len(searches) == 2


@ALL
async def test_nothing_found_is_told_from_a_list_that_has_gone(case):
    async with endpoint(case, Reply(case.empty), Reply(case.no_list)) as (_, adapter):
        if case.emptiness is None:
            assert await asked(adapter) == []
        else:
            assert (await refusal(adapter)).kind is case.emptiness
        assert (await refusal(adapter)).kind is SCHEMA


@ALL
async def test_rows_with_holes_lose_what_is_missing_and_no_more(case):
    one, two = "https://pages.example/1", "http://pages.example/2?a=1#b"
    rows = [
        *(None, "row", 3, [], {}),
        *(case.row(url=url, title="t", text="") for url in ("javascript:x", "/relative", "//h/x", "http://", 7)),
        case.row(url=one, title=None, text="x", score=None),
        case.row(url=two, title=["t"], text="y", score="high"),
    ]
    async with endpoint(case, Reply(case.rows(rows))) as (_, adapter):
        found = await asked(adapter)
    if case.name == "jina":
        assert found == [("", "https://pages.example/velmora", case.found[0][2], 0.0)]
    else:
        assert found == [("", one, "x", 0.0), ("", two, "y", 0.0)]


@SEARCHES
async def test_an_address_comes_once_and_no_more_hits_come_than_were_asked_for(case):
    row = [case.row(url=f"https://pages.example/{n}", title=f"{n}", text="x", score=1) for n in range(9)]
    again = [] if case.name == "retriever" else [row[0]]  # passages of one page may share its address
    async with endpoint(case, Reply(case.rows([*again, *row]))) as (_, adapter):
        assert [title for title, *_ in await asked(adapter)] == ["0", "1", "2"]


@SEARCHES
async def test_rows_that_have_all_lost_their_address_are_a_changed_schema(case):
    rows = [case.row(title="t", text=None) for _ in range(2)]
    async with endpoint(case, Reply(case.rows(rows))) as (_, adapter):
        assert (await refusal(adapter)).kind is SCHEMA


# --- refusals -----------------------------------------------------------------------------------------------


@EACH_FAILURE
async def test_each_documented_failure_has_its_kind(case, failure):
    async with endpoint(case, failure.reply) as (_, adapter):
        error = await refusal(adapter)
    assert (error.kind, error.retry_after) == (failure.kind, failure.retry_after)
    assert len(error.message) < 250
    assert "\n" not in error.message


@ALL
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, ErrorKind.BAD_KEY),
        (402, ErrorKind.NO_CREDIT),
        (403, ErrorKind.BAD_KEY),
        (429, ErrorKind.RATE),
        (400, ErrorKind.BAD_REQUEST),
        (500, ErrorKind.TRANSIENT),
        (502, ErrorKind.TRANSIENT),
        (503, ErrorKind.TRANSIENT),
        (504, ErrorKind.TRANSIENT),
        (404, ErrorKind.SCHEMA),
        (302, ErrorKind.SCHEMA),
        (200, ErrorKind.SCHEMA),
    ],
)
async def test_the_status_decides_where_the_body_says_nothing(case, status, kind):
    replies = [Reply(body, status, {"Location": "/elsewhere"}) for body in (HTML, {}, [], None)]
    async with endpoint(case, *replies) as (server, adapter):
        assert [(await refusal(adapter)).kind for _ in replies] == [kind] * len(replies)
    assert "/elsewhere" not in [seen.path for seen in server.seen]


@ALL
@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({"Retry-After": "0.25"}, 0.25), ({"Retry-After": "999999"}, 3600.0), ({}, None)],
)
async def test_a_rate_limit_says_how_long_to_wait_if_the_provider_does(case, header, seconds):
    async with endpoint(case, Reply({}, 429, header), Reply(HTML, 503, header)) as (_, adapter):
        error = await refusal(adapter)
        assert (error.kind, error.retry_after) == (RATE, seconds)
        error = await refusal(adapter)
        assert (error.kind, error.retry_after) == (TRANSIENT, seconds)


@ALL
async def test_only_what_may_be_tried_again_says_when(case):
    async with endpoint(case, Reply({}, 401, {"Retry-After": "7"})) as (_, adapter):
        assert (await refusal(adapter)).retry_after is None


# --- connections --------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("fault", ["cut", "torn"])
async def test_a_cut_connection_is_passing_and_the_request_is_sent_once(case, fault):
    async with endpoint(case) as (server, adapter):
        await asked(adapter)  # the connection is now a kept one, on which a client is tempted to try again
        server.replies = [Reply(fault=fault)]
        assert (await refusal(adapter)).kind is TRANSIENT
        assert len([seen for seen in server.seen if seen.path != case.aside]) == 2


@ALL
async def test_an_address_where_nobody_listens_is_passing(case):
    async with endpoint(case) as (_, adapter):
        pass
    with pytest.raises(ProviderError) as caught:
        await asked(adapter)
    await adapter.close()
    assert caught.value.kind is TRANSIENT


@ALL
async def test_a_caller_that_gives_up_leaves_no_connection_behind(case):
    async with endpoint(case, Reply(fault="hangs")) as (server, adapter):
        call = asyncio.create_task(asked(adapter))
        async with asyncio.timeout(5):
            await server.arrived.wait()
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            await server.left.wait()
        server.replies = []
        assert await asked(adapter) == case.found


@ALL
async def test_an_answer_that_takes_too_long_is_passing(case):
    async with endpoint(case, Reply(fault="hangs"), timeout=0.02) as (server, adapter):
        assert (await refusal(adapter)).kind is TRANSIENT
        if server.arrived.is_set():  # else the time was over before, in the upload or the connection
            await asyncio.wait_for(server.left.wait(), 5)


@ALL
def test_an_adapter_works_on_one_loop_after_another(case):
    adapter = case.make("http://127.0.0.1:1")

    async def once():
        async with loopback(case.accepts, case.aside) as server:
            adapter._api._base = server.url
            try:
                return await asked(adapter)
            finally:
                await adapter.close()

    assert asyncio.run(once()) == asyncio.run(once()) == case.found


# --- keys ---------------------------------------------------------------------------------------------------


@KEYED
async def test_a_key_is_looked_for_at_the_first_call_and_named_when_it_is_missing(case, monkeypatch):
    async with endpoint(case) as (server, adapter):
        monkeypatch.delenv(case.key_env)
        error = await refusal(adapter)
        assert error.kind is BAD_KEY
        assert case.key_env in error.message
        assert server.seen == []
        monkeypatch.setenv(case.key_env, f" {KEY}\n")  # as files and shells leave it
        assert await asked(adapter) == case.found


@KEYED
async def test_what_cannot_be_a_key_is_not_sent_and_not_quoted(case, monkeypatch):
    async with endpoint(case) as (server, adapter):
        monkeypatch.setenv(case.key_env, "first\r\nX-Other: second")
        error = await refusal(adapter)
    assert error.kind is BAD_KEY
    assert "second" not in error.message
    assert server.seen == []


@KEYED
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_quoted(case):
    with pytest.raises(UserError) as caught:
        case.make("https://api.example", key_env="tvly-0123456789abcdef")
    assert "0123" not in caught.value.message


@KEYED
async def test_no_error_log_repr_or_pickle_shows_the_key(case, caplog):
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    spellings = [KEY, KEY.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D").replace("&", "%26")]
    answers = [Reply(body, status) for body in echoes(" ".join(spellings)) for status in (200, 400, 401, 429, 500)]
    answers += [Reply(HTML), Reply(fault="cut"), Reply(fault="torn"), Reply({}, 302, {"Location": f"/?api_key={KEY}"})]
    shown = []
    async with endpoint(case) as (server, adapter):
        for answer in answers:
            server.replies = [answer]
            error = await refusal(adapter)
            shown += [
                str(error),
                repr(error),
                *traceback.format_exception(error),
                pickle.dumps(error).decode("latin-1"),
            ]
            assert error.__context__ is None
        shown += [repr(adapter), repr(vars(adapter)), repr(vars(adapter._api)), repr(pickle.dumps(adapter))]
        shown += [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    for text in shown:
        assert not any(spelling in text for spelling in (*spellings, "k+y", "k%2By", "0123", "secret"))


@ALL
async def test_an_adapter_travels_in_a_pickle_after_it_was_used(case):
    async with endpoint(case) as (server, _):
        adapter = pickle.loads(pickle.dumps(case.make(server.url)))
        assert await asked(adapter) == case.found
        other = pickle.loads(pickle.dumps(adapter))
        assert KEY.encode() not in pickle.dumps(adapter)
        assert await asked(other) == case.found
        await adapter.close()
        await other.close()


@ALL
def test_making_an_adapter_reads_nothing_and_opens_nothing(case, monkeypatch):
    monkeypatch.delenv(case.key_env, raising=False)
    adapter = case.make("http://127.0.0.1:9")
    assert adapter._api._sessions == {}
    if case.key_env:
        assert case.key_env not in os.environ


# --- what an answer cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "tokens", "usd"),
    [
        ("serper", {"usd_per_credit": 0.001}, 0, 0.002),
        ("serper lens", {"usd_per_credit": 0.001}, 0, 0.002),
        ("tavily", {"usd_per_credit": 0.008}, 0, 0.016),
        ("jina", {"usd_per_million_tokens": 50.0}, 7, 0.00035),
        ("brave", {}, 0, 0.0),
    ],
)
async def test_credits_and_tokens_of_a_reply_go_to_the_meter(name, kwargs, tokens, usd):
    case = next(case for case in CASES if case.name == name)
    async with endpoint(case, **kwargs) as (_, adapter):
        with metered() as meter:
            await asked(adapter)
    assert (meter.tokens, meter.usd) == (tokens, pytest.approx(usd))


@pytest.mark.parametrize("cost", [None, "2", -1, True, float("inf"), 10**400])
async def test_a_cost_that_is_no_figure_counts_as_none(cost):
    case = next(case for case in CASES if case.name == "serper")
    body = {"searchParameters": {"q": "x"}, "organic": [], "credits": cost}
    async with endpoint(case, Reply(body), usd_per_credit=1.0) as (_, adapter):
        with metered() as meter:
            assert await asked(adapter) == []
    assert meter.usd == 0.0


async def test_tokens_of_a_page_that_was_not_found_are_paid_all_the_same():
    case = next(case for case in CASES if case.name == "jina")
    reply = {"code": 200, "status": 20000, "data": {"content": "", "httpStatus": 404}, "meta": {"usage": {"tokens": 9}}}
    async with endpoint(case, Reply(reply)) as (_, adapter):
        with metered() as meter:
            await refusal(adapter)
    assert isinstance(adapter, JinaReader)
    assert meter.tokens == 9
