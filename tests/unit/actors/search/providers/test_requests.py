"""What an adapter's arguments become on the wire, in each provider's own spelling, and which are refused at once."""

from __future__ import annotations

import pytest

from actors.search.fetch.reader import DirectReader
from actors.search.metering import metered
from actors.search.providers.brave import BraveSearch, wait_for_windows
from actors.search.providers.jina import JinaReader
from actors.search.providers.retriever import RetrieverSearch
from actors.search.providers.searxng import SearxngSearch
from actors.search.providers.serpapi import SerpApiLens, SerpApiSearch
from actors.search.providers.serper import SerperLens, SerperSearch
from actors.search.providers.tavily import TavilySearch
from actors.search.seams import ErrorKind, ImageQuery, ProviderError, TextQuery
from cluster.errors import UserError
from tests.unit.actors.search.providers.documented import (
    CASES,
    KEY,
    NOTHING,
    PICTURE_URL,
    AtOneAddress,
    asked,
    jina_data,
    lens_rows,
    passage,
    picture,
    searxng_rows,
    serpapi_rows,
    serper_row,
    serper_rows,
    tavily_row,
)
from tests.unit.actors.search.providers.loopback import Loopback, Reply, loopback


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for case in CASES:
        if case.key_env:
            monkeypatch.setenv(case.key_env, KEY)


@pytest.fixture
async def server():
    """Takes any request and finds nothing, in the words of all providers at once."""
    nothing = {
        **{"organic": [], "results": [], "search_metadata": {"status": "Success"}, "error": NOTHING, "type": "search"},
        **{"result": [[]], "image_id": "img-7", "data": jina_data()["data"]},
    }
    async with loopback(lambda seen: nothing if seen.path != "/res/v1/web/search" else {"type": "search"}) as running:
        yield running


async def sent(server: Loopback, adapter, k: int = 3):
    """The last request that asking makes the adapter send."""
    try:
        await asked(adapter, k)
    finally:
        await adapter.close()
    return server.seen[-1]


# --- locale, safety, sizes ----------------------------------------------------------------------------------

HERE = {"country": "AT", "language": "de"}


@pytest.mark.parametrize(
    ("make", "kwargs", "wanted"),
    [
        (SerperSearch, HERE, {"gl": "at", "hl": "de"}),
        (SerpApiSearch, HERE, {"gl": "at", "hl": "de", "safe": "active"}),
        (SerpApiSearch, {"safe": False, "no_cache": True}, {"safe": "off", "no_cache": "true"}),
        (SerpApiLens, HERE, {"country": "at", "hl": "de", "safe": "active"}),
        (SerpApiLens, {"safe": False, "kind": "exact_matches"}, {"safe": "off", "type": "exact_matches"}),
        (BraveSearch, HERE, {"country": "AT", "search_lang": "de", "safesearch": "strict"}),
        (BraveSearch, {"safe": False, "extra_snippets": True}, {"safesearch": "off", "extra_snippets": "true"}),
        (BraveSearch, {"language": "ja"}, {"search_lang": "jp"}),
        (BraveSearch, {"language": "zh-TW"}, {"search_lang": "zh-hant"}),
        (TavilySearch, {"country": "united kingdom", "depth": "advanced"}, {"country": "united kingdom"}),
        (SearxngSearch, HERE, {"language": "de-AT", "safesearch": "2"}),
        (SearxngSearch, {"language": "pt-br", "safe": False}, {"language": "pt-br", "safesearch": "0"}),
        (SearxngSearch, {"engines": "brave,qwant", "categories": ""}, {"engines": "brave,qwant"}),
    ],
)
async def test_arguments_are_sent_as_the_provider_spells_them(server, make, kwargs, wanted):
    seen = await sent(server, make(base_url=server.url, **kwargs))
    carried = seen.json or seen.query
    assert {name: carried.get(name) for name in wanted} == wanted


async def test_the_reader_has_its_options_in_headers(server):
    reader = JinaReader(base_url=server.url, country="at", language="de", page_timeout=25, max_tokens=4000)
    headers = (await sent(server, reader)).headers
    wanted = {"x-locale": "de-AT", "x-timeout": "25", "x-max-output-tokens": "4000", "x-retain-images": "none"}
    assert {name: headers.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("make", [SerperSearch, SerpApiSearch, SerpApiLens, BraveSearch, SearxngSearch, JinaReader])
async def test_a_locale_that_is_left_open_is_not_sent(server, make):
    seen = await sent(server, make(base_url=server.url))
    carried = {**seen.query, **(seen.json or {}), **seen.headers}
    assert not {"gl", "hl", "country", "search_lang", "language", "x-locale", "x-max-output-tokens"} & carried.keys()


async def test_a_reader_without_a_key_sends_none(server):
    assert "authorization" not in (await sent(server, JinaReader(base_url=server.url, key_env=""))).headers


@pytest.mark.parametrize(
    ("make", "name", "most"),
    [(BraveSearch, "count", "20"), (TavilySearch, "max_results", 20), (SerperSearch, "num", 10)],
)
async def test_no_more_rows_are_asked_for_than_the_provider_gives(server, make, name, most):
    seen = await sent(server, make(base_url=server.url), k=500)
    assert (seen.json or seen.query)[name] == most


async def test_a_path_in_the_address_stays_in_front(server):
    assert (await sent(server, SearxngSearch(base_url=f"{server.url}/searx/"))).path == "/searx/search"


async def test_brave_is_not_asked_what_it_does_not_take(server):
    adapter = BraveSearch(base_url=server.url)
    for text in ("x" * 401, "x " * 51):
        with pytest.raises(ProviderError, match="at most 400 characters and 50 words") as caught:
            await adapter.search(TextQuery(text, 3))
        assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert server.seen == []
    await adapter.search(TextQuery("x" * 400, 3))
    await adapter.close()


NO_PAGES = ["", "file:///etc/passwd", "ftp://h.example/x", "http://user:pw@host.example/", "/x", "http://a b/"]
INSIDE = [
    *("http://localhost/", "http://wiki/", "http://build.internal/", "http://db.svc/", "http://nas.local/x"),
    *("http://127.0.0.1/", "http://10.1.2.3/", "http://169.254.169.254/latest/meta-data/", "http://2130706433/"),
    *("http://0177.0.0.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://[fd00:ec2::254]/"),
    *("http://pages.example:8080/", "http://pages.example:22/", "http://\N{CIRCLED DIGIT ONE}0.0.0.1/"),
]


@pytest.mark.parametrize("url", [*NO_PAGES, *INSIDE])
async def test_the_reader_is_not_told_what_is_no_page_of_the_open_web(server, url):
    reader, direct = JinaReader(base_url=server.url), DirectReader(robots=False)
    problems = []
    for one in (reader, direct):
        with pytest.raises(ProviderError) as caught:
            await one.read(url)
        problems.append((caught.value.kind, caught.value.message))
        await one.close()
    assert problems[0] == problems[1]
    assert problems[0][0] is ErrorKind.BAD_REQUEST
    assert server.seen == []


@pytest.mark.parametrize(
    ("lists", "url", "read"),
    [
        ({}, "https://huggingface.co/datasets/x", False),
        ({"deny_presets": []}, "https://huggingface.co/datasets/x", True),
        ({"deny": ["shut.example"]}, "https://www.shut.example/", False),
        ({"allow": ["pages.example"]}, "https://pages.example/x", True),
        ({"allow": ["pages.example"]}, "https://other.example/x", False),
    ],
)
async def test_the_readers_domain_lists_hold(server, lists, url, read):
    reader = JinaReader(base_url=server.url, **lists)
    if read:
        await reader.read(url)
    else:
        with pytest.raises(ProviderError, match="list") as caught:
            await reader.read(url)
        assert caught.value.kind is ErrorKind.BAD_REQUEST
    await reader.close()
    assert [seen.json for seen in server.seen] == ([{"url": url}] if read else [])


@pytest.mark.parametrize("found", ["https://shut.example/answers", "http://10.0.0.1/", "http://wiki/"])
async def test_a_page_that_jina_was_redirected_to_is_judged_too_and_was_paid_for(server, found):
    server.replies = [Reply(jina_data(url=found, usage={"tokens": 7}))]
    reader = JinaReader(base_url=server.url, deny=["shut.example"])
    with metered() as meter, pytest.raises(ProviderError) as caught:
        await reader.read("https://pages.example/velmora")
    await reader.close()
    assert (caught.value.kind, meter.tokens) == (ErrorKind.BAD_REQUEST, 7)


async def test_a_page_has_the_address_where_it_was_found_and_the_time(server):
    reader = JinaReader(base_url=server.url, wall=lambda: 1234.5)
    page = await reader.read("https://pages.example/moved#part")
    await reader.close()
    assert server.seen[-1].json == {"url": "https://pages.example/moved"}
    assert (page.url, page.fetched_at) == ("https://pages.example/velmora", 1234.5)


# --- quirks of single providers -----------------------------------------------------------------------------


async def test_brave_markup_is_text_and_further_snippets_follow(server):
    row = {
        "url": "https://a.example",
        "title": "<b>A</b> &amp; B",
        "description": "x &lt;b&gt; <em>y</em> 3 < 4",
        "extra_snippets": ["<p>more</p>", None, ""],
    }
    server.replies = [Reply({"type": "search", "web": {"results": [row]}})]
    adapter = BraveSearch(base_url=server.url)
    assert await asked(adapter) == [("A & B", "https://a.example", "x <b> y 3 < 4\nmore", 0.0)]
    await adapter.close()


@pytest.mark.parametrize(
    ("remaining", "reset", "wait"),
    [
        ("0, 900", "1, 1419704", 1.0),
        ("0, 0", "1, 1419704", 1419704.0),
        ("1, 900", "1, 1419704", None),
        ("", "", None),
        ("0", "", None),
        ("0, 0", "7", 7.0),
        ("zero, 0", "1, -5", None),
        ("9" * 5000, "1", None),
    ],
)
def test_the_wait_is_until_every_exhausted_window_opens(remaining, reset, wait):
    assert wait_for_windows({"X-RateLimit-Remaining": remaining, "X-RateLimit-Reset": reset}) == wait


@pytest.mark.parametrize("name", ["organic", "visual_matches", "visualMatches"])
async def test_serper_lens_rows_are_found_under_each_of_their_names(server, name):
    server.replies = [Reply({"searchParameters": {"type": "lens"}, name: [serper_row(url="https://a.example")]})]
    adapter = SerperLens(base_url=server.url, published=AtOneAddress())
    assert len(await asked(adapter)) == 1
    await adapter.close()


async def test_the_signed_address_of_a_picture_is_in_no_error(server):
    server.replies = [Reply({"message": f"cannot fetch {PICTURE_URL}"}, 400)]
    adapter = SerperLens(base_url=server.url, published=AtOneAddress())
    with pytest.raises(ProviderError) as caught:
        await asked(adapter)
    await adapter.close()
    assert "cannot fetch" in str(caught.value)
    assert "Signature" not in str(caught.value)


async def test_without_a_key_no_picture_is_published_for_nothing(server, monkeypatch):
    class Counting(AtOneAddress):
        asked = 0

        async def publish(self, image):
            Counting.asked += 1
            return await super().publish(image)

    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(ProviderError, match="SERPER_API_KEY"):
        await asked(SerperLens(base_url=server.url, published=Counting()))
    assert Counting.asked == 0


async def test_results_come_before_a_word_that_nothing_was_found(server):
    server.replies = [Reply({**serpapi_rows([serper_row(url="https://a.example")]), "error": NOTHING})]
    adapter = SerpApiSearch(base_url=server.url)
    assert len(await asked(adapter)) == 1
    server.replies = [Reply({"search_information": {"organic_results_state": "Fully empty"}})]
    assert await asked(adapter) == []
    await adapter.close()


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply({"error": "Invalid API key."}, 401), ErrorKind.BAD_KEY),
        (Reply({"error": "The image is too large."}, 400), ErrorKind.BAD_REQUEST),
        (Reply({"message": "ok"}), ErrorKind.SCHEMA),
        (Reply({"error": "Cannot take it."}), ErrorKind.SCHEMA),
        (Reply(fault="torn"), ErrorKind.TRANSIENT),
    ],
)
async def test_an_upload_that_fails_is_not_followed_by_a_search(server, reply, kind):
    server.replies = [reply]
    adapter = SerpApiLens(base_url=server.url)
    with pytest.raises(ProviderError) as caught:
        await asked(adapter)
    await adapter.close()
    assert caught.value.kind is kind
    assert [seen.path for seen in server.seen] == ["/image"]


async def test_a_large_picture_is_made_smaller_before_it_is_uploaded(server):
    server.replies = [Reply({"image_id": "i"}), Reply(lens_rows([]))]
    adapter = SerpApiLens(base_url=server.url)
    large = picture(side=500)
    assert len(large) > 500_000
    await adapter.search(ImageQuery(large, 3))
    assert 0 < len(server.seen[0].form["image"]) <= 500_000
    with pytest.raises(ProviderError, match="not a readable picture") as caught:
        await adapter.search(ImageQuery(b"no picture", 3))
    await adapter.close()
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert len(server.seen) == 2


async def test_searxng_has_results_even_when_some_of_its_engines_have_none(server):
    server.replies = [Reply(searxng_rows([tavily_row(url="https://a.example", title="t")]))]
    adapter = SearxngSearch(base_url=server.url)
    assert len(await asked(adapter)) == 1
    server.replies = [Reply({"results": [], "unresponsive_engines": [["brave", "CAPTCHA"], "x", None]})]
    with pytest.raises(ProviderError, match="brave CAPTCHA, x") as caught:
        await asked(adapter)
    await adapter.close()
    assert caught.value.kind is ErrorKind.TRANSIENT


@pytest.mark.parametrize(
    ("document", "title", "text"),
    [
        ({"contents": '"A title"\nLine one.\nLine two.'}, "A title", "Line one.\nLine two."),
        ({"title": "A", "text": "B", "contents": '"C"\nD'}, "A", "B"),
        ({"contents": "no title\nat all"}, "", "no title\nat all"),
    ],
)
async def test_passages_have_their_title_in_the_first_line_or_apart(server, document, title, text):
    server.replies = [Reply({"result": [[{"document": document, "score": 2}]]})]
    adapter = RetrieverSearch(base_url=server.url)
    assert await asked(adapter) == [(title, "", text, 2.0)]
    server.replies = [Reply({"result": [[passage(text="x"), passage(text="y")]]})]
    assert len(await asked(adapter, k=1)) == 1
    await adapter.close()


async def test_serper_answers_are_cut_to_what_was_asked_for(server):
    server.replies = [Reply(serper_rows([serper_row(url=f"https://a.example/{n}") for n in range(10)]))]
    adapter = SerperSearch(base_url=server.url)
    assert len(await asked(adapter, k=2)) == 2
    await adapter.close()


# --- configurations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kwargs", "told"),
    [
        (SerperSearch, {"country": "germany"}, "two letters"),
        (SerperSearch, {"language": "German"}, "tag such as"),
        (SerperSearch, {"timeout": 0}, "timeout"),
        (SerperSearch, {"base_url": "google.serper.dev"}, "base_url"),
        (SerperSearch, {"base_url": "https://google.serper.dev:port"}, "base_url"),
        (SerperSearch, {"base_url": "https://h/?api_key=x"}, "base_url"),
        (SearxngSearch, {"base_url": "http://user:word@searxng:8080"}, "without credentials"),
        (SearxngSearch, {"base_url": "http://searxng:8080", "country": "at"}, "part of the language"),
        (TavilySearch, {"country": "de"}, "English name"),
        (TavilySearch, {"depth": "deep"}, "depth"),
        (TavilySearch, {"country": "germany", "topic": "news"}, "general"),
        (SerpApiLens, {"kind": "about_this_image"}, "kind"),
        (JinaReader, {"page_timeout": 181}, "180"),
        (JinaReader, {"deny_presets": ["everything"]}, "deny preset"),
        (JinaReader, {"country": "at"}, "part of the language"),
        (SerperLens, {"store": "/tmp/crops"}, "addresses on the web"),
        (SerperLens, {}, "addresses on the web"),
        (SerperLens, {"store": "s3://bucket/crops", "url_seconds": 0}, "seconds"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_when_it_is_loaded(make, kwargs, told):
    with pytest.raises(UserError, match=told) as caught:
        make(**kwargs)
    assert "word" not in caught.value.message


def test_an_own_search_engine_needs_its_address():
    with pytest.raises(TypeError, match="base_url"):
        SearxngSearch()  # type: ignore[call-arg]
