"""Recordings, shared answers and pages, through the gateway: who is asked, what is remembered, what is refused."""

import asyncio
import random
import time
from dataclasses import replace

import pytest

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.metering import spent
from actors.search.pages.extractive import ExtractiveSummariser
from actors.search.pages.settings import PageSettings
from actors.search.seams import ErrorKind, Page, ProviderError, TextHit
from actors.search.settings import ProviderSettings, RetrySettings, SearchSettings
from actors.search.sources import Endpoints
from actors.search.store.settings import CassetteSettings, Mode
from tests.unit.actors.search.search_world import Colours, FolderImages, scene

FAR = 1e9
PAGES = SearchSettings(
    top_k=2,
    readers=[ProviderSettings(path="reader")],
    pages=PageSettings(spare=2),
    retry=RetrySettings(retries=0),
)


class Web:
    """Four results about anything, and the pages behind them; some cannot be read. Every request is noted."""

    def __init__(self, broken=(), error=ErrorKind.TRANSIENT) -> None:
        self.broken, self.error = broken, error
        self.searched: list[str] = []
        self.read_urls: list[str] = []

    async def search(self, query):
        self.searched.append(query.text)
        return [TextHit(f"title {i}", f"https://web.example/{i}", f"snippet {i}") for i in range(4)][: query.k]

    async def read(self, url):
        self.read_urls.append(url)
        if any(url.endswith(f"/{i}") for i in self.broken):
            raise ProviderError(self.error, "this page is down")
        spent(tokens=100)
        return Page(url, "a page", f"Weather is fine. The founder of velmora is ilse tarn, says {url}. Buy our soap.")


def gateway(web, settings=PAGES, images=None, **more):
    endpoints = Endpoints(
        text=[Endpoint("web", web, 0.001)],
        readers=[Endpoint("reader", web)],
        summarisers=[Endpoint("extractive", ExtractiveSummariser(max_sentences=1))],
    )
    if not settings.readers:
        endpoints = replace(endpoints, readers=(), summarisers=())
    return Gateway(settings, images or FolderImages("nowhere"), replace(endpoints, **more), rng=random.Random(0))


def ask(query="founder of velmora", question=""):
    return ToolRequest(Tool.TEXT_SEARCH, query, question=question)


async def test_what_a_page_says_to_the_question_is_the_evidence():
    web = Web()
    result = await gateway(web).call(ask(), deadline=FAR)
    assert [item.text for item in result.evidence] == [
        f"The founder of velmora is ilse tarn, says https://web.example/{i}." for i in range(2)
    ]
    assert {item.provider for item in result.evidence} == {"web+reader"}


async def test_a_page_that_fails_is_replaced_by_the_next_result():
    result = await gateway(Web(broken=[0])).call(ask(), deadline=FAR)
    assert [item.url for item in result.evidence] == ["https://web.example/1", "https://web.example/2"]


async def test_where_no_page_can_be_read_the_search_engine_has_the_word_and_it_is_told_who_said_it():
    result = await gateway(Web(broken=range(4))).call(ask(), deadline=FAR)
    assert [item.text for item in result.evidence] == ["snippet 0", "snippet 1"]
    assert {item.provider for item in result.evidence} == {"web"}


@pytest.mark.parametrize("kind", [ErrorKind.BUDGET, ErrorKind.NO_CREDIT, ErrorKind.BAD_KEY])
async def test_a_reader_that_must_not_be_paid_any_more_is_no_reason_to_go_on_without_pages(kind):
    result = await gateway(Web(broken=range(4), error=kind)).call(ask(), deadline=FAR)
    assert result.outcome is Outcome.REFUSED


async def test_what_pages_cost_is_in_the_ledger():
    gate = gateway(Web())
    await gate.call(ask(), deadline=FAR)
    assert gate.ledger.totals.tokens == 200
    assert gate.ledger.totals.cost_usd == pytest.approx(0.001)


async def test_a_page_is_read_once_for_two_questions_and_the_search_made_for_each():
    web = Web()
    gate = gateway(web)
    await gate.call(ask(question="who founded it?"), deadline=FAR)
    await gate.call(ask(question="how is the weather?"), deadline=FAR)
    assert len(web.searched) == 2
    assert len(web.read_urls) == 2


async def test_a_recorded_call_is_replayed_without_anybody_outside(tmp_path):
    recording = replace(PAGES, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path)))
    gate = gateway(Web(), recording)
    live = await gate.call(ask(), deadline=FAR)
    await gate.close()
    web = Web()
    gate = gateway(web, replace(recording, cassette=CassetteSettings(mode=Mode.REPLAY, folder=str(tmp_path))))
    replayed = await gate.call(ask(), deadline=FAR)
    assert replayed.evidence == live.evidence
    assert replayed.cost_usd == 0
    assert (web.searched, web.read_urls) == ([], [])
    assert (gate.totals.replayed, gate.totals.unrecorded) == (1, 0)


async def test_a_call_that_was_not_recorded_is_refused_in_replay_and_named(tmp_path):
    recording = replace(PAGES, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path)))
    gate = gateway(Web(), recording)
    await gate.call(ask(), deadline=FAR)
    await gate.close()
    web = Web()
    gate = gateway(web, replace(recording, cassette=CassetteSettings(mode=Mode.REPLAY, folder=str(tmp_path))))
    result = await gate.call(ask("another question"), deadline=FAR)
    assert result.outcome is Outcome.REFUSED
    assert "another question" in result.message
    assert web.searched == []


async def test_replay_or_live_asks_what_was_not_recorded_and_says_how_much_was(tmp_path):
    recording = replace(PAGES, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path)))
    gate = gateway(Web(), recording)
    await gate.call(ask(), deadline=FAR)
    await gate.close()
    web = Web()
    gate = gateway(web, replace(recording, cassette=CassetteSettings(mode=Mode.REPLAY_OR_LIVE, folder=str(tmp_path))))
    await gate.call(ask(), deadline=FAR)
    await gate.call(ask("another question"), deadline=FAR)
    assert web.searched == ["another question"]
    assert "50.0% of what it was asked for was recorded" in str(gate.totals)


async def test_a_recorded_picture_search_brings_its_thumbnails_along(tmp_path):
    for name in ("there", "here", "tape"):
        (tmp_path / name).mkdir()
    there, here = FolderImages(str(tmp_path / "there")), FolderImages(str(tmp_path / "here"))
    tape = SearchSettings(top_k=2, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path / "tape")))
    request = ToolRequest(Tool.IMAGE_SEARCH, image=there.put(scene("red")))
    gate = gateway(Web(), tape, there, image=[Endpoint("colours", Colours())])
    live = await gate.call(request, deadline=FAR)
    await gate.close()
    tape = replace(tape, cassette=replace(tape.cassette, mode=Mode.REPLAY))
    gate = gateway(Web(), tape, here, image=[Endpoint("colours", Colours())])
    replayed = await gate.call(request, deadline=FAR)
    assert replayed.evidence == live.evidence
    assert all(here.get(item.thumbnail) == there.get(item.thumbnail) for item in live.evidence)


async def test_other_bounds_on_text_make_another_call(tmp_path):
    recording = replace(PAGES, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path)))
    gate = gateway(Web(), recording)
    await gate.call(ask(), deadline=FAR)
    await gate.close()
    shorter = replace(recording, max_text_chars=20, cassette=CassetteSettings(mode=Mode.REPLAY, folder=str(tmp_path)))
    result = await gateway(Web(), shorter).call(ask(), deadline=FAR)
    assert result.outcome is Outcome.REFUSED


async def test_an_answer_without_pages_that_failed_for_a_moment_is_not_kept_for_long():
    web, now = Web(broken=[0]), [0.0]
    endpoints = Endpoints(
        text=[Endpoint("web", web)],
        readers=[Endpoint("reader", web)],
        summarisers=[Endpoint("extractive", ExtractiveSummariser())],
    )
    gate = Gateway(PAGES, FolderImages("nowhere"), endpoints, clock=lambda: now[0])
    await gate.call(ask(), deadline=FAR)
    now[0] = PAGES.cache.negative_ttl_s + 1
    web.broken = ()
    again = await gate.call(ask(), deadline=FAR)
    assert [item.url for item in again.evidence] == ["https://web.example/0", "https://web.example/1"]


async def test_pages_that_are_not_done_in_time_leave_the_search_engine_the_word():
    class Slow(Web):
        async def read(self, url) -> Page:
            await asyncio.Event().wait()
            raise AssertionError("it never comes")

    result = await gateway(Slow()).call(ask(), deadline=time.monotonic() + 3.2)
    assert [item.text for item in result.evidence] == ["snippet 0", "snippet 1"]
