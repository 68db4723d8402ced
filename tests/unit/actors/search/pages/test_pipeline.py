import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.pages.pipeline import PageFailure, PagePipeline, Stage
from actors.search.pages.settings import PageSettings
from actors.search.seams import ErrorKind, Page, ProviderError, TextHit

FOR_EVER = PageSettings(deadline_s=1e9)


def hits(n):
    return [TextHit(f"title {i}", f"https://p.example/{i}", f"snippet {i}", 1.0 / (1 + i)) for i in range(n)]


def number(url):
    return int(url.rpartition("/")[2])


@dataclass
class Web:
    """Pages that come when told to. `bad`: what reading or summarising the page of that number raises or gives."""

    bad_reads: dict = field(default_factory=dict)
    bad_summaries: dict = field(default_factory=dict)
    held: set = field(default_factory=set)  # pages that wait for `release`
    release: asyncio.Event = field(default_factory=asyncio.Event)
    read_of: list = field(default_factory=list)
    summarised: list = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    given_up: list = field(default_factory=list)

    async def read(self, url):
        i = number(url)
        self.read_of.append(i)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if i in self.held:
                await self.release.wait()
            await asyncio.sleep(0)
            return self._given(self.bad_reads, i, Page(url, f"page {i}", f"text {i} " * 20))
        except asyncio.CancelledError:
            self.given_up.append(i)
            raise
        finally:
            self.under_way -= 1

    async def summarise(self, page, question):
        i = number(page.url)
        self.summarised.append((page, question))
        await asyncio.sleep(0)
        return self._given(self.bad_summaries, i, f"summary {i}")

    def _given(self, bad, i, good):
        outcome = bad.get(i, good)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def pipeline(web, settings=FOR_EVER, top_k=3, **kwargs):
    return PagePipeline(web.read, web.summarise, settings, top_k, **kwargs)


def texts(pages):
    return [hit.text for hit in pages.hits]


class Deadline:
    """Passes when told to; remembers how long it was to be."""

    def __init__(self):
        self.passed, self.seconds = asyncio.Event(), []

    async def sleep(self, seconds):
        self.seconds.append(seconds)
        await self.passed.wait()


def down(kind=ErrorKind.TRANSIENT):
    return ProviderError(kind, "no")


async def test_the_first_pages_are_read_and_keep_the_searchs_order_title_and_score():
    web = Web()
    pages = await pipeline(web).run(hits(8), "who?")
    assert web.read_of == [0, 1, 2]
    assert pages.hits[1] == TextHit("title 1", "https://p.example/1", "summary 1", 0.5)
    assert texts(pages) == ["summary 0", "summary 1", "summary 2"]
    assert pages.summarised == (True, True, True)
    assert (pages.failures, pages.snippets, pages.refusal) == ((), 0, None)
    assert {question for _, question in web.summarised} == {"who?"}


async def test_a_slow_first_page_stays_first_and_holds_up_no_summary():
    web = Web(held={0})
    running = asyncio.create_task(pipeline(web).run(hits(3), "q"))
    while len(web.summarised) < 2:
        await asyncio.sleep(0)
    assert not running.done()
    web.release.set()
    assert texts(await running) == ["summary 0", "summary 1", "summary 2"]


async def test_a_failed_page_is_replaced_by_the_next_result_at_once():
    web = Web(bad_reads={1: down()}, held={0, 2})
    running = asyncio.create_task(pipeline(web).run(hits(9), "q"))
    while 3 not in web.read_of:
        await asyncio.sleep(0)  # while the others are still being read
    web.release.set()
    pages = await running
    assert texts(pages) == ["summary 0", "summary 2", "summary 3"]
    assert pages.failures == (PageFailure("https://p.example/1", Stage.READ, ErrorKind.TRANSIENT, "no"),)
    assert web.read_of == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("bad", "stage", "kind"),
    [
        ({"bad_reads": {0: ConnectionResetError("cut")}}, Stage.READ, ErrorKind.TRANSIENT),
        ({"bad_reads": {0: TimeoutError()}}, Stage.READ, ErrorKind.TRANSIENT),
        ({"bad_reads": {0: KeyError("markdown")}}, Stage.READ, ErrorKind.SCHEMA),
        ({"bad_reads": {0: Page("https://p.example/0", "", " \n ")}}, Stage.READ, ErrorKind.SCHEMA),
        ({"bad_reads": {0: asyncio.CancelledError()}}, Stage.READ, None),
        ({"bad_summaries": {0: down(ErrorKind.BAD_REQUEST)}}, Stage.SUMMARISE, ErrorKind.BAD_REQUEST),
        ({"bad_summaries": {0: "  "}}, Stage.SUMMARISE, ErrorKind.SCHEMA),
        ({"bad_summaries": {0: ValueError("x")}}, Stage.SUMMARISE, ErrorKind.SCHEMA),
    ],
)
async def test_every_way_to_fail_is_recorded_with_its_stage_and_replaced(bad, stage, kind):
    pages = await pipeline(Web(**bad), top_k=1).run(hits(2), "q")
    assert texts(pages) == ["summary 1"]
    assert [(failure.stage, failure.kind) for failure in pages.failures] == [(stage, kind)]
    assert pages.failures[0].message


async def test_where_pages_are_missing_the_searchs_own_text_stands_in_by_rank_and_says_so():
    web = Web(bad_reads={0: down(), 2: down(), 3: down()})
    pages = await pipeline(web, PageSettings(spare=1, deadline_s=1e9)).run(hits(4), "q")
    assert texts(pages) == ["snippet 0", "summary 1", "snippet 2"]
    assert pages.summarised == (False, True, False)
    assert pages.snippets == 2


async def test_without_keep_snippet_only_pages_that_were_read_are_returned():
    web = Web(bad_reads={0: down()})
    settings = PageSettings(spare=0, keep_snippet=False, deadline_s=1e9)
    assert texts(await pipeline(web, settings, top_k=2).run(hits(5), "q")) == ["summary 1"]


async def test_a_result_that_says_nothing_by_itself_is_not_put_in_place_of_a_page():
    mute = [TextHit("t", "https://p.example/0", "  "), TextHit("t", "https://p.example/1", "snippet 1")]
    pages = await pipeline(Web(bad_reads={0: down(), 1: down()}), top_k=2).run(mute, "q")
    assert texts(pages) == ["snippet 1"]


async def test_no_more_than_the_spare_results_are_tried():
    web = Web(bad_reads=dict.fromkeys(range(20), down()))
    pages = await pipeline(web, PageSettings(spare=2, deadline_s=1e9)).run(hits(20), "q")
    assert web.read_of == [0, 1, 2, 3, 4]
    assert texts(pages) == ["snippet 0", "snippet 1", "snippet 2"]


async def test_the_same_address_is_read_once_whatever_its_fragment():
    found = [*hits(2), TextHit("again", "https://p.example/0#history", "x"), *hits(4)]
    web = Web()
    pages = await pipeline(web, top_k=4).run(found, "q")
    assert web.read_of == [0, 1, 2, 3]
    assert texts(pages) == [f"summary {i}" for i in range(4)]
    assert pages.failures == ()


async def test_a_result_without_address_is_not_read_and_keeps_its_text():
    web = Web()
    pages = await pipeline(web, top_k=2).run([TextHit("a", "", "snippet a"), *hits(1)], "q")
    assert web.read_of == [0]
    assert texts(pages) == ["snippet a", "summary 0"]
    assert pages.failures[0].kind is ErrorKind.BAD_REQUEST


async def test_no_more_pages_are_under_way_than_allowed():
    web = Web()
    pages = await pipeline(web, PageSettings(at_once=2, deadline_s=1e9), top_k=6).run(hits(9), "q")
    assert web.most_under_way == 2
    assert len(pages.hits) == 6


async def test_the_settings_number_of_pages_comes_before_top_k():
    assert len((await pipeline(Web(), PageSettings(pages=2, deadline_s=1e9)).run(hits(9), "q")).hits) == 2


async def test_only_the_beginning_of_a_page_is_summarised():
    web = Web()
    await pipeline(web, PageSettings(max_page_chars=10, deadline_s=1e9), top_k=1).run(hits(1), "q")
    assert web.summarised[0][0].text == ("text 0 " * 20)[:10]


async def test_at_the_deadline_what_is_done_is_returned_and_nothing_is_left_running():
    web, deadline = Web(held={1}), Deadline()
    running = asyncio.create_task(pipeline(web, sleep=deadline.sleep).run(hits(9), "q"))
    while len(web.summarised) < 2:
        await asyncio.sleep(0)
    deadline.passed.set()
    pages = await running
    assert texts(pages) == ["summary 0", "snippet 1", "summary 2"]
    assert pages.failures == (PageFailure("https://p.example/1", Stage.READ, None, "not done in time"),)
    assert web.given_up == [1]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(("left", "expected"), [(None, 40.0), (7.0, 7.0), (70.0, 40.0)])
async def test_the_sooner_of_both_deadlines_counts(left, expected):
    deadline = Deadline()
    await pipeline(Web(), PageSettings(), sleep=deadline.sleep).run(hits(3), "q", left)
    assert deadline.seconds == [expected]


@pytest.mark.parametrize("left", [0.0, -3.0])
async def test_when_no_time_is_left_no_page_is_asked_for(left):
    web = Web()
    assert texts(await pipeline(web).run(hits(5), "q", left)) == ["snippet 0", "snippet 1", "snippet 2"]
    assert web.read_of == []


async def test_a_cancelled_run_leaves_no_task_behind():
    web = Web(held={0, 1, 2})
    running = asyncio.create_task(pipeline(web).run(hits(9), "q"))
    while len(web.read_of) < 3:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(web.given_up) == [0, 1, 2]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("kind", [ErrorKind.NO_CREDIT, ErrorKind.BAD_KEY, ErrorKind.BUDGET, ErrorKind.OPEN])
async def test_after_a_refusal_that_the_next_page_would_meet_too_no_further_page_is_started(kind):
    web = Web(bad_reads=dict.fromkeys(range(9), down(kind)))
    pages = await pipeline(web).run(hits(9), "q")
    assert web.read_of == [0, 1, 2]
    assert texts(pages) == ["snippet 0", "snippet 1", "snippet 2"]
    refusal = pages.refusal
    assert (refusal.kind if refusal else None) is (None if kind is ErrorKind.OPEN else kind)


async def test_no_hits_are_no_pages():
    pages = await pipeline(Web()).run([], "q")
    assert (pages.hits, pages.failures) == ((), ())


@given(
    n=st.integers(0, 12),
    wanted=st.integers(1, 5),
    spare=st.integers(0, 4),
    at_once=st.integers(1, 4),
    bad_reads=st.sets(st.integers(0, 11)),
    bad_summaries=st.sets(st.integers(0, 11)),
    keep=st.booleans(),
)
def test_whatever_fails_the_best_pages_are_returned_in_order(n, wanted, spare, at_once, bad_reads, bad_summaries, keep):
    web = Web(dict.fromkeys(bad_reads, down()), dict.fromkeys(bad_summaries, down()))
    settings = PageSettings(spare=spare, at_once=at_once, keep_snippet=keep, deadline_s=1e9)
    pages = asyncio.run(pipeline(web, settings, wanted).run(hits(n), "q"))
    ranks = [number(hit.url) for hit in pages.hits]
    assert ranks == sorted(set(ranks))
    tried = web.read_of
    assert tried == list(range(len(tried)))
    assert len(tried) <= wanted + spare
    good = [i for i in tried if i not in bad_reads | bad_summaries]
    assert len(good) <= wanted
    assert [rank for rank, read in zip(ranks, pages.summarised, strict=True) if read] == good
    assert len(good) == wanted or len(tried) == min(n, wanted + spare)
    assert len(ranks) == (min(n, wanted) if keep else len(good))
    assert [number(failure.url) for failure in pages.failures] == [i for i in tried if i not in good]
    assert web.most_under_way <= at_once
