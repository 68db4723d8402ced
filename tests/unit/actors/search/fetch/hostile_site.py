"""A web server of the tests that may answer anything, byte by byte, and the fetcher that may reach it.

The server stands on loopback, where the fetcher never goes. So the tests hand the fetcher an address policy that lets
exactly that one address through, next to a resolver that knows their names; all other addresses stay refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from actors.search.fetch.addresses import refusal
from actors.search.fetch.fetcher import GuardedFetcher
from actors.search.fetch.settings import FetchSettings

HERE = "127.0.0.1"
SITE = "site.example.org"
Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """A whole HTTP answer. `length`: what Content-Length claims; the truth when None, nothing when negative."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length is None or length >= 0:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def page(text: str = "hello", *headers: str) -> bytes:
    return answer(text.encode(), "Content-Type: text/html; charset=utf-8", *headers)


def redirect(target: str, *headers: str) -> bytes:
    return answer(b"", f"Location: {target}", *headers, status="302 Found")


@dataclass
class Site:
    """`pages`: by path with query, an answer or a script that writes one; `requests`: heads as they came in."""

    pages: dict[str, bytes | Script] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.requests.append(head)
            found = self.pages.get(head.split(" ")[1], answer(b"", status="404 Not Found"))
            if isinstance(found, bytes):
                writer.write(found)
                await writer.drain()
            else:
                await found(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the fetcher left, or the test is over
        finally:
            writer.close()

    def url(self, path: str = "/", host: str = SITE) -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [head.split(" ")[1] for head in self.requests]


class Names:
    """A resolver with one answer for each name, or one after the other where it is a list of answers."""

    def __init__(self, **extra) -> None:
        self.answers: dict[str, list] = {SITE: [[HERE]], **extra}
        self.asked: list[str] = []

    async def __call__(self, name):
        self.asked.append(name)
        answers = self.answers[name]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(found, BaseException):
            raise found
        return found


def only_the_site(address):
    return None if address == ip_address(HERE) else refusal(address)


@dataclass
class Web:
    site: Site
    names: Names
    settings: FetchSettings

    def fetcher(self, **changes) -> GuardedFetcher:
        clocks = {name: changes.pop(name) for name in ("clock", "wall", "tls") if name in changes}
        settings = replace(self.settings, **changes)
        return GuardedFetcher(settings, resolve=self.names, refuse=only_the_site, **clocks)

    async def get(self, url: str, accept=("text/html",), **changes):
        fetcher = self.fetcher(**changes)
        try:
            return await fetcher.get(url, accept=accept)
        finally:
            await fetcher.close()


@contextlib.asynccontextmanager
async def hostile_web(tls=None):
    site = Site()
    scheme_port = {"ssl": tls} if tls else {}
    server = await asyncio.start_server(site.handle, HERE, 0, **scheme_port)
    site.port = server.sockets[0].getsockname()[1]
    settings = FetchSettings(ports=[80, 443, site.port], robots=False, deadline=5.0)
    try:
        yield Web(site, Names(), settings)
    finally:
        server.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(server.wait_closed(), 1)
