"""What strangers try on the guarded fetcher. Each case is named for the attempt; all end refused or bounded.

Spellings of addresses that are refused unread stand in test_urls.py, the address lists in test_addresses.py.
"""

import asyncio
import gzip
import socket
import zlib

import pytest

from actors.search.fetch.fetcher import retry_after_seconds
from actors.search.seams import ErrorKind, ProviderError
from tests.unit.actors.search.fetch.hostile_site import HERE, SITE, answer, hostile_web, page, redirect

REFUSED, LATER, UNREADABLE = ErrorKind.BAD_REQUEST, ErrorKind.TRANSIENT, ErrorKind.SCHEMA
HTML = "Content-Type: text/html"
SOON = 0.15  # seconds: the deadline of cases that never end
FAR = 10.0  # seconds: the most that any case may take


@pytest.fixture
async def web():
    async with hostile_web() as web:
        yield web


async def told(web, url, **changes):
    """The error that a fetch of `url` ends in."""
    with pytest.raises(ProviderError) as caught:
        await asyncio.wait_for(web.get(url, **changes), FAR)
    return caught.value


# --- addresses --------------------------------------------------------------------------------------------

INSIDE = [
    *("127.0.0.2", "127.1.1.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.100.100.200"),
    *("168.63.129.16", "0.0.0.0", "224.0.0.1", "255.255.255.255", "100.64.0.1", "198.18.0.1"),
    *("[::1]", "[::]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[::7f00:2]", "[64:ff9b::a00:1]"),
    *("[2002:a00:1::]", "[2001:0:a00:1::]", "[2606:4700::5efe:10.0.0.1]", "[fd00:ec2::254]", "[fe80::1]", "[ff02::1]"),
]
SPELLINGS = ["2130706434", "0177.0.0.2", "0x7f000002", "127.2", "①②⑦.⓪.⓪.②", "127。0。0。2", "%31%32%37.0.0.2"]


@pytest.mark.parametrize("host", [*INSIDE, *SPELLINGS])
async def test_an_inner_address_in_the_address_line(web, host):
    error = await told(web, f"http://{host}:{web.site.port}/")
    assert error.kind is REFUSED
    assert web.names.asked == []
    assert web.site.requests == []


@pytest.mark.parametrize("host", [*INSIDE, *SPELLINGS, "localhost", "metadata.google.internal", "db.svc.cluster.local"])
async def test_an_inner_address_behind_a_redirect(web, host):
    web.site.pages["/"] = redirect(f"http://{host}:{web.site.port}/inside")
    error = await told(web, web.site.url())
    assert error.kind is REFUSED
    assert web.site.paths == ["/"]


@pytest.mark.parametrize("found", [host.strip("[]") for host in INSIDE] + ["fe80::1%eth0", "not an address"])
async def test_a_name_that_resolves_to_an_inner_address(web, found):
    web.names.answers[SITE] = [[found]]
    error = await told(web, web.site.url())
    assert error.kind is REFUSED
    assert web.names.asked == [SITE]
    assert web.site.requests == []


@pytest.mark.parametrize("found", [[HERE, "10.0.0.1"], ["10.0.0.1", HERE], [HERE, "::1"], [HERE] * 20 + ["10.0.0.1"]])
async def test_an_inner_address_among_good_ones(web, found):
    web.names.answers[SITE] = [found]
    assert (await told(web, web.site.url())).kind is REFUSED
    assert web.site.requests == []


async def test_a_name_that_changes_its_answer_after_it_was_judged(web):
    web.names.answers[SITE] = [[HERE], ["10.0.0.1"]]
    web.site.pages["/"] = page("judged")
    assert (await web.get(web.site.url())).body == b"judged"
    assert web.names.asked == [SITE]  # what was judged is what was connected to


async def test_a_name_that_changes_its_answer_between_two_fetches(web):
    web.names.answers[SITE] = [[HERE], ["10.0.0.1"]]
    web.site.pages["/"] = page()
    fetcher = web.fetcher()
    await fetcher.get(web.site.url(), accept=["text/html"])
    with pytest.raises(ProviderError, match="private"):
        await fetcher.get(web.site.url(), accept=["text/html"])
    await fetcher.close()
    assert len(web.site.requests) == 1


async def test_a_name_that_changes_its_answer_at_a_redirect_to_itself(web):
    web.names.answers[SITE] = [[HERE], ["169.254.169.254"]]
    web.site.pages["/"] = redirect("/again")
    assert (await told(web, web.site.url())).kind is REFUSED
    assert web.site.paths == ["/"]


async def test_a_name_that_changes_its_answer_after_its_robots_txt(web):
    web.names.answers[SITE] = [[HERE], ["10.0.0.1"]]
    assert (await told(web, web.site.url("/x"), robots=True)).kind is REFUSED
    assert web.site.paths == ["/robots.txt"]


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "none"), REFUSED),
        (socket.gaierror(socket.EAI_AGAIN, "again"), LATER),
        (OSError("down"), LATER),
        (UnicodeError("label too long"), LATER),
    ],
)
async def test_a_name_that_does_not_resolve(web, problem, kind):
    web.names.answers[SITE] = [problem]
    assert (await told(web, web.site.url())).kind is kind


async def test_a_name_without_addresses(web):
    web.names.answers[SITE] = [[]]
    assert (await told(web, web.site.url())).kind is REFUSED


async def test_a_name_server_that_never_answers(web):
    async def never(name):
        await asyncio.Event().wait()

    web.names = never
    assert (await told(web, web.site.url(), deadline=SOON)).kind is LATER


async def test_an_address_that_slips_past_everything_still_gets_no_socket(web):
    from actors.search.fetch.connection import guarded_session

    async def unused(name):
        return [HERE]

    session = guarded_session(unused, lambda address: "refused", "x/1", None)
    with pytest.raises(ProviderError, match="refused"):
        await session.get(web.site.url("/", HERE))
    await session.close()
    assert web.site.requests == []


async def test_a_proxy_of_the_environment_is_not_used(web, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.2:9")
    web.site.pages["/"] = page("direct")
    assert (await web.get(web.site.url())).body == b"direct"


# --- addresses of other kinds -----------------------------------------------------------------------------

TARGETS = {
    "a file": "file:///etc/passwd",
    "ftp": "ftp://site.example.org/",
    "gopher": "gopher://site.example.org:70/_x",
    "data": "data:text/html,inside",
    "javascript": "javascript:alert(1)",
    "userinfo": "http://user:secret@site.example.org/",
    "another host behind userinfo": "//site.example.org@10.0.0.1/",
    "ssh": "http://site.example.org:22/",
    "redis": "http://site.example.org:6379/",
    "a denied site": "https://huggingface.co/datasets/lmms-lab/FVQA",
    "a denied site by a dotted name": "https://HuggingFace。co./datasets/x",
    "a relay": "https://web.archive.org/web/2024/https://huggingface.co/datasets/lmms-lab/FVQA",
    "a backslash": "http:\\\\10.0.0.1\\",
    "nothing": "",
    "too much": "/" + "x" * 3000,
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
async def test_a_redirect_to(web, target):
    web.site.pages["/"] = redirect(target)
    assert (await told(web, web.site.url())).kind is REFUSED
    assert web.site.paths == ["/"]


async def test_a_redirect_that_names_no_target(web):
    web.site.pages["/"] = answer(b"", status="302 Found")
    assert (await told(web, web.site.url())).kind is REFUSED


async def test_a_redirect_to_itself(web):
    web.site.pages["/"] = redirect("/")
    assert (await told(web, web.site.url())).kind is REFUSED
    assert len(web.site.requests) == 6


async def test_two_pages_that_redirect_to_each_other(web):
    web.site.pages |= {"/a": redirect("/b"), "/b": redirect("/a")}
    assert (await told(web, web.site.url("/a"), max_redirects=3)).kind is REFUSED
    assert web.site.paths == ["/a", "/b", "/a", "/b"]


async def test_a_redirect_with_an_endless_body(web):
    async def endless(writer):
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4\r\nmore\r\n")
            await writer.drain()
            await asyncio.sleep(0)

    web.site.pages |= {"/": endless, "/there": page("there")}
    assert (await asyncio.wait_for(web.get(web.site.url()), FAR)).body == b"there"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
async def test_an_honest_redirect_is_followed(web, status):
    web.site.pages |= {"/": answer(b"", "Location: there?x=1", status=status), "/there?x=1": page("there")}
    got = await web.get(web.site.url())
    assert (got.body, got.final_url, got.url) == (b"there", web.site.url("/there?x=1"), web.site.url())


# --- what is sent -----------------------------------------------------------------------------------------


async def test_nothing_is_sent_but_the_request(web):
    web.site.pages["/x"] = page()
    await web.get(web.site.url("/x#fragment"), accept=("text/html", "text/plain"))
    lines = web.site.requests[0].split("\r\n")
    assert lines[0] == "GET /x HTTP/1.1"
    assert sorted(line for line in lines[1:] if line) == [
        "Accept-Encoding: gzip, deflate",
        "Accept: text/html, text/plain",
        "Connection: close",
        f"Host: {SITE}:{web.site.port}",
        "User-Agent: mmsearch-ray/0.1",
    ]


async def test_cookies_that_are_set_on_a_redirect_do_not_come_back(web):
    web.site.pages |= {"/": redirect("/b", "Set-Cookie: id=1; Path=/"), "/b": page("b", "Set-Cookie: id=2")}
    fetcher = web.fetcher()
    for _ in range(2):
        await fetcher.get(web.site.url(), accept=["text/html"])
    await fetcher.close()
    assert len(web.site.requests) == 4
    assert not any("cookie" in head.lower() for head in web.site.requests)


async def test_neither_credentials_nor_a_referrer_go_along(web, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {SITE} login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    web.site.pages["/"] = answer(b"", "Location: /b", 'WWW-Authenticate: Basic realm="x"', status="302 Found")
    web.site.pages["/b"] = answer(b"", 'WWW-Authenticate: Basic realm="x"', status="401 Unauthorized")
    assert (await told(web, web.site.url())).kind is REFUSED
    assert web.site.paths == ["/", "/b"]
    assert not any(word in head.lower() for head in web.site.requests for word in ("authorization", "referer"))


# --- bodies -----------------------------------------------------------------------------------------------

MEGABYTE = bytes(2**20)
RAW = zlib.compressobj(wbits=-15)
BOMBS = {
    "gzip": ("gzip", gzip.compress(MEGABYTE)),
    "x-gzip": ("X-GZIP", gzip.compress(MEGABYTE)),
    "deflate": ("deflate", zlib.compress(MEGABYTE)),
    "bare deflate": ("deflate", RAW.compress(MEGABYTE) + RAW.flush()),
    "gzip of many members": ("gzip", gzip.compress(bytes(1000)) * 60),
    "gzip of thousands of empty members": ("gzip", gzip.compress(b"") * 2000),
    "gzip in gzip": ("gzip, gzip", gzip.compress(gzip.compress(MEGABYTE))),
    "gzip in gzip on two lines": ("gzip\r\nContent-Encoding: gzip", gzip.compress(gzip.compress(MEGABYTE))),
    "brotli": ("br", b"\xce\xe7\xff\x1f" + bytes(30)),
    "zstd": ("zstd", b"\x28\xb5\x2f\xfd" + bytes(30)),
    "compress": ("compress", b"\x1f\x9d" + bytes(30)),
    "an unknown encoding": ("aws-chunked", b"x"),
    "an encoding of a thousand letters": ("x" * 1000, b"x"),
}


@pytest.mark.parametrize(("encoding", "body"), BOMBS.values(), ids=BOMBS)
async def test_a_bomb_of(web, encoding, body):
    web.site.pages["/"] = answer(body, HTML, f"Content-Encoding: {encoding}")
    error = await told(web, web.site.url(), max_body_bytes=50_000)
    assert error.kind is REFUSED


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_compressed_as_it_says(web, encoding):
    web.site.pages["/"] = answer(b"\x1f\x8bthis is no such thing", HTML, f"Content-Encoding: {encoding}")
    assert (await told(web, web.site.url())).kind is UNREADABLE


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body_that_breaks_off(web, encoding):
    whole = gzip.compress(b"hello" * 100) if encoding == "gzip" else zlib.compress(b"hello" * 100)
    web.site.pages["/"] = answer(whole[:-10], HTML, f"Content-Encoding: {encoding}")
    assert (await told(web, web.site.url())).kind is LATER


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"hello")),
        ("gzip", gzip.compress(b"hel") + gzip.compress(b"lo")),
        ("gzip", gzip.compress(b"hello") + bytes(100)),
        ("deflate", zlib.compress(b"hello")),
        ("deflate", zlib.compress(b"hello", wbits=-15)),
        ("identity", b"hello"),
    ],
    ids=["gzip", "two members", "padded", "zlib", "bare deflate", "identity"],
)
async def test_an_honest_encoding_is_read(web, encoding, body):
    web.site.pages["/"] = answer(body, HTML, f"Content-Encoding: {encoding}")
    assert (await web.get(web.site.url())).body == b"hello"


async def test_a_body_just_within_its_bounds_is_read_and_one_beyond_is_not(web):
    web.site.pages["/"] = answer(gzip.compress(b"x" * 1000), HTML, "Content-Encoding: gzip")
    assert len((await web.get(web.site.url(), max_body_bytes=1000)).body) == 1000
    assert (await told(web, web.site.url(), max_body_bytes=999)).kind is REFUSED


async def test_a_body_that_is_declared_too_long_is_not_begun(web):
    async def declared(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 99999999\r\n\r\n")
        await asyncio.Event().wait()

    web.site.pages["/"] = declared
    assert (await told(web, web.site.url())).kind is REFUSED


async def test_a_body_longer_than_it_declares_is_refused_where_the_rest_comes_along(web):
    web.site.pages["/"] = answer(b"hello, and the answer to a request that was not made", HTML, length=5)
    assert (await told(web, web.site.url())).kind is UNREADABLE


async def test_what_comes_after_the_declared_body_is_not_read(web):
    async def more(writer):
        writer.write(answer(b"hello", HTML))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(page("the answer to a request that was not made"))

    web.site.pages["/"] = more
    fetcher = web.fetcher()
    for _ in range(2):
        assert (await fetcher.get(web.site.url(), accept=["text/html"])).body == b"hello"
    await fetcher.close()


async def test_a_body_shorter_than_it_declares(web):
    web.site.pages["/"] = answer(b"hello", HTML, length=50)
    assert (await told(web, web.site.url())).kind is LATER


async def test_an_endless_body_without_a_length(web):
    async def endless(writer):
        writer.write(answer(b"", HTML, length=-1))
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    web.site.pages["/"] = endless
    assert (await told(web, web.site.url(), max_bytes=100_000)).kind is REFUSED


async def test_an_endless_chunked_body(web):
    async def endless(writer):
        writer.write(answer(b"", HTML, "Transfer-Encoding: chunked", length=-1))
        while True:
            writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await writer.drain()

    web.site.pages["/"] = endless
    assert (await told(web, web.site.url(), max_bytes=100_000)).kind is REFUSED


async def test_an_endless_compressed_body_that_yields_nothing(web):
    async def endless(writer):
        writer.write(answer(b"", HTML, "Content-Encoding: gzip", length=-1))
        writer.write(gzip.compress(b"")[:10])
        while True:
            writer.write(b"\x00\x00\x00\xff\xff" * 2000)  # empty blocks
            await writer.drain()

    web.site.pages["/"] = endless
    assert (await told(web, web.site.url(), max_bytes=100_000)).kind is REFUSED


# --- time -------------------------------------------------------------------------------------------------


def dripping(start: bytes, drop: bytes):
    async def script(writer):
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(SOON / 10)

    return script


SLOW = {
    "silence": dripping(b"", b""),
    "a status line letter by letter": dripping(b"HTTP", b"1"),
    "headers that go on and on": dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "headers that never end": dripping(b"HTTP/1.1 200 OK\r\nX-A: ", b"b"),
    "interim answers without end": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints without end": dripping(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "a body letter by letter": dripping(answer(b"", HTML, length=1000), b"x"),
    "chunks letter by letter": dripping(answer(b"", HTML, "Transfer-Encoding: chunked", length=-1), b"1\r\nx\r\n"),
    "a chunk size without end": dripping(answer(b"", HTML, "Transfer-Encoding: chunked", length=-1), b"0"),
    "trailers without end": dripping(answer(b"0\r\n", HTML, "Transfer-Encoding: chunked", length=-1), b"X: y\r\n"),
    "a body that stops": dripping(answer(b"hello", HTML, length=1000), b""),
}


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW)
async def test_slowness_by(web, script):
    web.site.pages["/"] = script
    error = await told(web, web.site.url(), deadline=SOON)
    assert error.kind in (LATER, UNREADABLE)


async def test_redirects_that_each_take_their_time_share_one_deadline(web):
    async def slow(writer):
        await asyncio.sleep(SOON * 0.6)
        writer.write(redirect("/"))

    web.site.pages["/"] = slow
    assert (await told(web, web.site.url(), deadline=SOON)).kind is LATER  # else the redirects would be too many
    assert len(web.site.requests) <= 2


async def test_a_caller_that_leaves_takes_its_fetch_along(web):
    gone = asyncio.Event()

    async def waiting(writer):
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    web.site.pages["/"] = waiting
    fetch = asyncio.create_task(web.get(web.site.url()))
    while not web.site.requests:
        await asyncio.sleep(0)
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    await asyncio.wait_for(gone.wait(), 1)


# --- answers that are none --------------------------------------------------------------------------------

NONSENSE = {
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "http 0.9": b"<html>hello</html>",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a negative length": answer(b"x", HTML, "Content-Length: -5", length=-1),
    "two lengths": answer(b"x", HTML, "Content-Length: 1", "Content-Length: 2", length=-1),
    "a length and chunks": answer(b"0\r\n\r\n", HTML, "Transfer-Encoding: chunked"),
    "a chunk size of letters": answer(b"zz\r\nhello\r\n", HTML, "Transfer-Encoding: chunked", length=-1),
    "a huge header": answer(b"x", HTML, "X-A: " + "b" * 100_000),
    "a thousand headers": answer(b"x", HTML, *(f"X-{i}: b" for i in range(1000))),
    "a header with a null": answer(b"x", HTML, "X-A: \x00"),
    "a folded header": answer(b"x", HTML, "X-A: b\r\n c\x00"),
    "the end at once": b"",
    "the end in the headers": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("raw", NONSENSE.values(), ids=NONSENSE)
async def test_an_answer_that_is(web, raw):
    web.site.pages["/"] = raw
    error = await told(web, web.site.url(), deadline=1.0)
    assert error.kind in (UNREADABLE, LATER, REFUSED)


async def test_a_port_that_nobody_listens_on(web):
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        port = taken.getsockname()[1]
        error = await told(web, f"http://{SITE}:{port}/", ports=[port])
    assert error.kind is LATER


async def test_a_connection_that_is_reset(web):
    async def reset(writer):
        writer.transport.abort()

    web.site.pages["/"] = reset
    assert (await told(web, web.site.url())).kind is LATER


TYPES = [
    *("", "application/pdf", "application/octet-stream", "image/png", "video/mp4", "application/json", "text"),
    *("multipart/x-mixed-replace; boundary=x", "text/htmlx", "text/html/x", "application/zip", ";text/html"),
]


@pytest.mark.parametrize("kind", TYPES)
async def test_a_type_that_was_not_asked_for(web, kind):
    web.site.pages["/"] = answer(b"x", *([f"Content-Type: {kind}"] if kind else []))
    assert (await told(web, web.site.url())).kind is REFUSED


@pytest.mark.parametrize(
    ("header", "charset"),
    [
        ("text/html", ""),
        ("TEXT/HTML ; Charset=UTF-8", "utf-8"),
        ('text/html; x=y; charset="latin-1"', "latin-1"),
        ("text/html;charset", ""),
    ],
)
async def test_a_type_is_read_without_its_parameters(web, header, charset):
    web.site.pages["/"] = answer(b"x", f"Content-Type: {header}")
    got = await web.get(web.site.url())
    assert (got.content_type, got.charset) == ("text/html", charset)


STATUSES = [
    *(
        ("400 Bad", REFUSED),
        ("401 No", REFUSED),
        ("403 No", REFUSED),
        ("404 Not Found", REFUSED),
        ("410 Gone", REFUSED),
    ),
    *(("407 Proxy", REFUSED), ("451 Law", REFUSED), ("300 Choices", REFUSED), ("304 Same", REFUSED), ("999 No", LATER)),
    *(
        ("408 Timeout", LATER),
        ("500 Oops", LATER),
        ("502 Bad", LATER),
        ("503 Busy", LATER),
        ("429 Slow", ErrorKind.RATE),
    ),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
async def test_a_status_is_told_by_its_kind(web, status, kind):
    web.site.pages["/"] = answer(b"", HTML, status=status)
    error = await told(web, web.site.url())
    assert (error.kind, error.retry_after) == (kind, None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("7", 7.0), (" 0 ", 0.0), ("999999", 3600.0), ("9" * 400, 3600.0), ("-5", None), ("1.5", None), ("", None)),
        *(("soon", None), ("٣", None), ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0), ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0)),
        *(("Thu, 01 Jan 2970 00:01:40 GMT", 3600.0), ("Thu, 99 Jan 1970 00:00:00 GMT", None)),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(header, seconds):
    assert retry_after_seconds(header, 10.0, 3600.0) == seconds


async def test_a_busy_site_says_when_to_come_back(web):
    web.site.pages["/"] = answer(b"", "Retry-After: 12", status="429 Slow down")
    web.site.pages["/b"] = answer(b"", "Retry-After: 99999999", status="503 Busy")
    assert (await told(web, web.site.url())).retry_after == 12
    assert (await told(web, web.site.url("/b"))).retry_after == 3600


# --- lists ------------------------------------------------------------------------------------------------


async def test_a_denied_site_is_not_even_resolved(web):
    error = await told(web, web.site.url(), deny=["example.org"])
    assert error.kind is REFUSED
    assert web.names.asked == []


async def test_what_an_allow_list_does_not_name_is_refused_after_a_redirect_too(web):
    web.names.answers["other.example.com"] = [[HERE]]
    web.site.pages["/"] = redirect(web.site.url("/x", "other.example.com"))
    assert (await told(web, web.site.url(), allow=[SITE])).kind is REFUSED
    assert web.site.paths == ["/"]
