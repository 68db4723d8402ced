"""One request, one answer or one error; whatever the network does."""

from __future__ import annotations

import asyncio
import gzip
import html
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from actors.search.providers.http import MAX_BYTES, MAX_RETRY_AFTER, Complaint, JsonApi, kind_of, retry_after
from actors.search.seams import ErrorKind, ProviderError
from tests.unit.actors.search.providers.loopback import Reply, loopback

NOW = 1_800_000_000.0


def content(reply):
    return Complaint("", ErrorKind.NO_CREDIT) if reply.body.get("broke") else None


async def failure(api: JsonApi, **request) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await api.send("GET", "/x", **request)
    return caught.value


class Raw:
    """A server that writes bytes, for what no HTTP library would send."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aenter__(self) -> str:
        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.data)
            writer.close()

        self.server = await asyncio.start_server(handle, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_) -> None:
        self.server.close()
        await self.server.wait_closed()


def http(body: bytes, *headers: str, length: int | None = None) -> bytes:
    size = f"Content-Length: {len(body) if length is None else length}"
    return "\r\n".join(["HTTP/1.1 200 OK", size, *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (http(b'{"a": 1', length=999), ErrorKind.TRANSIENT),
        (http(b"\x1f\x8b broken", "Content-Encoding: gzip"), ErrorKind.TRANSIENT),
        (b"", ErrorKind.TRANSIENT),
        (b"220 mail.example ESMTP\r\n\r\n", ErrorKind.SCHEMA),
        (http(b""), ErrorKind.SCHEMA),
        (http(b'{"a": 1'), ErrorKind.SCHEMA),
        (http(b"[" * 100_000), ErrorKind.SCHEMA),
        (http(b'{"a": ' + b"9" * 5000 + b"}"), ErrorKind.SCHEMA),
        (http(b'\xff\xfe\xfa{"a": 1}'), ErrorKind.SCHEMA),
        (http(b'"a string"'), ErrorKind.SCHEMA),
        (http(gzip.compress(b"{}" + b" " * MAX_BYTES), "Content-Encoding: gzip"), ErrorKind.SCHEMA),
        (http(b"{}" + b" " * MAX_BYTES), ErrorKind.SCHEMA),
    ],
    ids=range(12),
)
async def test_bytes_that_are_no_answer_have_a_kind(data, kind):
    async with Raw(data) as url:
        api = JsonApi("Someone", url, content)
        error = await failure(api)
        await api.close()
    assert error.kind is kind
    assert error.message.startswith("Someone ")


@pytest.mark.parametrize("body", [b'{"a": "\\u00fc"}', b'\xef\xbb\xbf{"a": "\xc3\xbc"}', '{"a": "ü"}'.encode("utf-16")])
async def test_json_is_read_in_each_of_its_encodings(body):
    async with Raw(http(body)) as url:
        api = JsonApi("Someone", url, content)
        assert (await api.send("GET", "/x")).body == {"a": "ü"}
        await api.close()


async def test_a_compressed_answer_is_read():
    async with Raw(http(gzip.compress(b'{"a": 1}'), "Content-Encoding: gzip")) as url:
        api = JsonApi("Someone", url, content)
        assert (await api.send("GET", "/x")).body == {"a": 1}
        await api.close()


async def test_the_body_is_asked_before_the_status():
    async with loopback(lambda seen: {}) as server:
        api = JsonApi("Someone", server.url, content)
        for status in (200, 401, 429, 503):
            server.replies = [Reply({"broke": True}, status)]
            assert (await failure(api)).kind is ErrorKind.NO_CREDIT
        for status, kind in ((401, ErrorKind.BAD_KEY), (503, ErrorKind.TRANSIENT)):
            server.replies = [Reply({"broke": False}, status)]
            assert (await failure(api)).kind is kind
        await api.close()


async def test_neither_proxies_nor_cookies_nor_passwords_of_this_machine_have_a_say(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine localhost login somebody password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with loopback(lambda seen: {"a": 1}) as server:
        server.replies = [Reply({"a": 1}, headers={"Set-Cookie": "id=7; Path=/"})]
        # by its name: a cookie jar takes nothing from a bare address
        api = JsonApi("Someone", server.url.replace("127.0.0.1", "localhost"), content)
        for _ in range(2):
            assert (await api.send("GET", "/x")).body == {"a": 1}
        await api.close()
    assert not any({"cookie", "authorization"} & seen.headers.keys() for seen in server.seen)


async def test_one_connection_serves_many_requests_and_closing_ends_it():
    peers = set()

    async def handle(request):
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({"a": 1})

    app = web.Application()
    app.router.add_get("/x", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = JsonApi("Someone", f"http://127.0.0.1:{runner.addresses[0][1]}", content)
    for _ in range(3):
        await api.send("GET", "/x")
    assert len(peers) == 1
    await api.close()
    await api.close()
    assert api._sessions == {}
    await api.send("GET", "/x")
    assert len(peers) == 2
    await api.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("0", 0.0),
        ("12", 12.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("inf", MAX_RETRY_AFTER),
        ("86400", MAX_RETRY_AFTER),
        (format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=30), usegmt=True), 30.0),
        (format_datetime(datetime.fromtimestamp(NOW, UTC) - timedelta(seconds=30), usegmt=True), 0.0),
        (datetime.fromtimestamp(NOW + 30, UTC).strftime("%a, %d %b %Y %H:%M:%S -0000"), 30.0),
        ("Fri, 31 Feb 2027 00:00:00 GMT", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, NOW) == seconds


@given(st.text() | st.floats().map(str) | st.integers().map(str))
def test_any_retry_after_is_within_bounds_or_none(header):
    seconds = retry_after(header, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@given(st.integers(100, 999))
def test_every_status_that_is_no_success_has_a_kind_and_servers_faults_are_passing(status):
    assert (kind_of(status) is ErrorKind.TRANSIENT) == (status >= 500 or status in (408, 425))


@given(st.text(max_size=400))
def test_an_error_is_one_bounded_line_whatever_the_provider_says(said):
    error = JsonApi("Someone", "https://api.example", content).error(ErrorKind.RATE, said)
    assert len(error.message) <= 220
    assert len(error.message.splitlines()) == 1


SPELLINGS = [str, quote, quote_plus, lambda s: quote(s, safe=""), lambda s: quote_plus(s).lower(), html.escape]
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)


@given(KEYS, st.sampled_from(SPELLINGS), st.text("abc .:/?=", max_size=100))
def test_a_secret_is_cut_out_wherever_it_stands_and_however_it_is_spelt(secret, spelt, said):
    api = JsonApi("Someone", "https://api.example", content)
    error = api.error(ErrorKind.RATE, f"{said} {spelt(secret)}", hidden=[secret])
    assert error.message.endswith(" [hidden]")


@given(KEYS)
def test_an_address_with_a_secret_in_it_does_not_show_it(secret):
    api = JsonApi("Someone", "https://api.example", content)
    error = api.error(ErrorKind.RATE, str(URL("https://a.example/").with_query(key=secret)), hidden=[secret])
    assert error.message == "Someone https://a.example/?key=[hidden]"


@pytest.mark.parametrize("length", range(150, 220))
def test_a_secret_at_the_edge_of_the_bound_leaves_no_part_behind(monkeypatch, length):
    monkeypatch.setenv("SOMEONES_KEY", "k3y" * 20)
    api = JsonApi("Someone", "https://api.example", content, key_env="SOMEONES_KEY")
    assert "k3y" not in api.error(ErrorKind.RATE, "x" * length + "k3y" * 20).message
