import gzip

import pytest

from actors.search.fetch.fetcher import GuardedFetcher
from actors.search.fetch.main_text import title_and_text
from actors.search.fetch.reader import DirectReader, decoded
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import ProviderSettings
from cluster.errors import UserError
from tests.unit.actors.search.fetch.hostile_site import answer, hostile_web, page, redirect
from tests.unit.actors.search.fetch.test_pixels import HOSTILE, encoded

ARTICLE = """<!doctype html><html><head><title>Velmora | News</title></head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a></nav>
<article><h1>Velmora</h1>
<p>Velmora was founded by Ilse Tarn in 1931, in a shed behind the old mill of Ostra, with two looms and a cat.</p>
<p>It moved to Prell after the flood, where it has made glass, tea boxes and compasses for sailors ever since.</p>
<script>steal()</script></article>
<footer>Cookies! Accept all. © Velmora</footer></body></html>"""


async def shown(html):
    """Instead of the children: what the reader hands them."""
    return "title", html


@pytest.fixture
async def web():
    async with hostile_web() as web:
        yield web


def reader(web, extract=shown, **settings):
    return DirectReader(fetcher=web.fetcher(), extract=extract, **settings)


async def read(web, path="/", **settings):
    one = reader(web, **settings)
    try:
        return await one.read(web.site.url(path))
    finally:
        await one.close()


async def refused_page(web, path="/", **settings):
    with pytest.raises(ProviderError) as told:
        await read(web, path, **settings)
    return told.value


def test_title_and_main_text_are_found_and_what_stands_around_is_not():
    title, text = title_and_text(ARTICLE)
    assert title == "Velmora | News"
    assert "founded by Ilse Tarn in 1931" in text
    assert "compasses for sailors" in text
    assert not any(word in text for word in ("Shop", "Cookies", "steal"))


@pytest.mark.parametrize(
    "html", ["", " ", "hello", "<", "<!--", "<html>", "\ud800", "<p>" * 5000, "<svg><title/></svg>"]
)
def test_a_page_without_content_gives_text_or_none_but_no_error(html):
    title, text = title_and_text(html)
    assert isinstance(title, str)
    assert isinstance(text, str)


async def test_a_page_is_read_where_it_was_found_in_the_end(web):
    web.site.pages |= {"/": redirect("/there"), "/there": page("<p>hello</p>")}
    found = await read(web)
    assert (found.url, found.title, found.text) == (web.site.url("/there"), "title", "<p>hello</p>")
    assert found.fetched_at > 1e9


async def test_plain_text_is_taken_as_it_is(web):
    web.site.pages["/"] = answer("naïve <b>\n".encode(), "Content-Type: text/plain; charset=utf-8")
    found = await read(web)
    assert (found.title, found.text) == ("", "naïve <b>")


async def test_no_more_of_a_page_is_handed_on_than_the_cap_on_quotes(web):
    web.site.pages["/"] = page("word " * 5000)
    assert len((await read(web, max_chars=100)).text) <= 100


async def test_a_long_page_is_cut_before_it_is_parsed(web):
    web.site.pages["/"] = page("x" * 5000)
    assert (await read(web, max_html_bytes=1000)).text == "x" * 1000


OTHERS = {
    "a pdf": (b"%PDF-1.7", "application/pdf"),
    "a pdf that says html": (b"%PDF-1.7", "text/html"),
    "a png that says html": (b"\x89PNG\r\n", "text/html"),
    "a zip that says text": (b"PK\x03\x04", "text/plain"),
    "a gzip that says text": (gzip.compress(b"x"), "text/plain"),
    "a program that says text": (b"\x7fELF\x02", "text/plain"),
    "nulls that say text": (b"abc\x00\x00\x00", "text/plain"),
    "json": (b"{}", "application/json"),
    "a picture": (encoded("PNG"), "image/png"),
}


@pytest.mark.parametrize(("body", "kind"), OTHERS.values(), ids=OTHERS)
async def test_no_page_is_made_of(web, body, kind):
    web.site.pages["/"] = answer(body, f"Content-Type: {kind}")
    assert (await refused_page(web)).kind is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("Köln".encode(), "", "Köln"),
        ("Köln".encode("latin-1"), "iso-8859-1", "Köln"),
        ("Köln".encode("latin-1"), "", "K\ufffdln"),
        ("Привет".encode("koi8-r"), "KOI8-R", "Привет"),
        ("こんにちは".encode("shift_jis"), "Shift_JIS", "こんにちは"),
        ("你好".encode("gb18030"), "gb18030", "你好"),
        ("Köln".encode("utf-16"), "", "Köln"),
        ("Köln".encode("utf-8-sig"), "latin-1", "Köln"),
        (b"\\u003c", "unicode_escape", "\\u003c"),
        (b"abc-", "punycode", "abc-"),
        (b"+ADw-", "utf-7", "+ADw-"),
        (b"616263", "hex", "616263"),
        (b"abc", "no such thing", "abc"),
        (b"abc", "x" * 10_000, "abc"),
        (b"abc", "\x00", "abc"),
        (b"abc", "ü", "abc"),
    ],
)
def test_text_is_decoded_by_charsets_of_the_web_alone(body, charset, text):
    assert decoded(body, charset) == text


async def test_a_page_may_name_its_charset_itself(web):
    html = '<html><head><meta charset="windows-1251"></head><body>Привет</body></html>'
    web.site.pages["/"] = answer(html.encode("cp1251"), "Content-Type: text/html")
    assert "Привет" in (await read(web)).text


async def test_a_thumbnail_is_fetched(web):
    web.site.pages["/a.png"] = answer(encoded("PNG"), "Content-Type: image/png")
    one = reader(web)
    assert await one.fetch_image(web.site.url("/a.png")) == encoded("PNG")
    await one.close()


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_no_thumbnail_is_made_of(web, data):
    web.site.pages["/a.png"] = answer(data, "Content-Type: image/png")
    one = reader(web, max_pixels=10_000)
    with pytest.raises(ProviderError) as told:
        await one.fetch_image(web.site.url("/a.png"))
    assert told.value.kind is ErrorKind.BAD_REQUEST
    await one.close()


async def test_a_page_is_no_thumbnail(web):
    web.site.pages["/"] = page(ARTICLE)
    one = reader(web)
    with pytest.raises(ProviderError, match="text/html"):
        await one.fetch_image(web.site.url())
    await one.close()


# --- configuration ----------------------------------------------------------------------------------------


def test_the_reader_is_made_from_plain_configuration():
    from actors.search.build import endpoint

    settings = ProviderSettings(
        path="actors.search.fetch.reader:DirectReader", kwargs={"max_chars": 100, "deny": ["example.org"]}
    )
    assert endpoint(settings).name == "DirectReader"


@pytest.mark.parametrize(
    "settings",
    [
        {"deadline": 0},
        {"max_bytes": 0},
        {"deny_presets": ["x"]},
        {"allow": ["http://x"]},
        {"user_agent": ""},
        {"user_agent": "1/x"},
    ],
)
def test_settings_without_sense_are_told(settings):
    with pytest.raises(UserError):
        DirectReader(**settings)


def test_a_setting_that_does_not_exist_is_told():
    with pytest.raises(TypeError):
        DirectReader(allow_loopback=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/", "http://localhost/", "http://169.254.169.254/"])
async def test_a_fetcher_without_anything_given_to_it_keeps_out_of_the_inside(url):
    fetcher = GuardedFetcher()
    with pytest.raises(ProviderError) as told:
        await fetcher.get(url, accept=["text/html"])
    assert told.value.kind is ErrorKind.BAD_REQUEST
    await fetcher.close()
