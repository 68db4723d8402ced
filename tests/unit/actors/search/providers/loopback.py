"""A provider on 127.0.0.1: it answers what is documented, refuses what is not, and fails in the ways of the web."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

HTML = b"<html><body>Just a moment...</body></html>"


@dataclass(frozen=True)
class Seen:
    """A request as it came in. `form`: fields of a multipart body, files as bytes."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    json: Any = None
    form: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """`fault`: "hangs" never answers, "cut" ends the connection at once, "torn" in the middle of the body."""

    body: Any = None  # bytes go as HTML, all else as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""


class WrongRequest(Exception):
    """The documented endpoint would not understand this request."""


@dataclass
class Loopback:
    """`answer` checks a request, raising WrongRequest, and gives the documented reply to it.

    Requests to `aside` (an upload that goes before) always get that; others get `replies`, one after the other, the
    last one for good, as soon as there are any.
    """

    answer: Callable[[Seen], Any]
    aside: str = ""
    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = await _seen(request)
        self.seen.append(seen)
        try:
            documented = Reply(self.answer(seen))
        except WrongRequest as error:
            self.wrong.append(f"{seen.method} {seen.path}: {error}")
            return web.json_response({"wrong": str(error)}, status=400)
        if seen.path == self.aside or not self.replies:
            return _response(documented)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply.fault == "hangs":
            await self._hang()
        if reply.fault:
            return await _broken(request, torn=reply.fault == "torn")
        return _response(reply)

    async def _hang(self) -> None:
        self.arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # aiohttp cancels a handler whose client has closed the connection
            self.left.set()
            raise


async def _seen(request: web.Request) -> Seen:
    body, form = None, {}
    if request.content_type == "application/json":
        body = await request.json()
    elif request.content_type == "multipart/form-data":
        for name, value in (await request.post()).items():
            form[name] = value.file.read() if isinstance(value, web.FileField) else value
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Seen(request.method, request.path, dict(request.query), headers, body, form)


def _response(reply: Reply) -> web.Response:
    if isinstance(reply.body, bytes):
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers, content_type="text/html")
    text = json.dumps(reply.body)
    return web.Response(text=text, status=reply.status, headers=reply.headers, content_type="application/json")


async def _broken(request: web.Request, *, torn: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    if torn:
        await response.prepare(request)
        await response.write(b'{"searchParameters": {"q": "')
    assert request.transport is not None
    request.transport.close()
    return response


@asynccontextmanager
async def loopback(answer: Callable[[Seen], Any], aside: str = "") -> AsyncIterator[Loopback]:
    """The server, running. At the end, no request may have been a wrong one."""
    server = Loopback(answer, aside)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
    assert server.wrong == []
