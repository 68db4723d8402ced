"""What Ray's HTTP proxies do for us: a request whose ingress died ends with an error in OpenAI's shape.

Of such a request Ray's proxy says nothing, which its server makes a page of plain text of, or of a stream a connection
that is cut. Ray takes `middlewares` by its name, from the environment of its proxies (`deploy.OWN`).

Always true: what the ingress has said is passed on as it is; requests of other applications are not touched, unless
they, too, are asked below /v1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from workflows.serve import errors

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OURS = "/v1/"  # below it are the routes that OpenAI's clients ask
NAME = "workflows.serve.front:middlewares"
_STREAM = b"text/event-stream"


class LastWord:
    """ASGI middleware: ends what `app` has left without an end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(OURS):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(scope, receive, answer.pass_on)
        await answer.conclude()


class _Answer:
    """One response on its way to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._ended = self._streams = False
        self._status = 0  # that Ray's proxy would have answered with

    async def pass_on(self, message: Message) -> None:
        """To the client, unless Ray's proxy speaks for itself: with these statuses the ingress says nothing plain."""
        if message["type"] == "http.response.start":
            if message["status"] in _MEANING and _content_type(message).startswith(b"text/plain"):
                self._status = message["status"]
                return
            self._begun, self._streams = True, _content_type(message).startswith(_STREAM)
        elif not self._begun:
            return
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def conclude(self) -> None:
        """The error in place of what is missing. An answer that was cut in its midst can only stay so."""
        error = _MEANING.get(self._status, errors.ingress_died)()
        body = json.dumps(error.body).encode()
        if not self._begun:
            headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self._send({"type": "http.response.body", "body": body})
        elif not self._ended and self._streams:
            await self._send({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})


# Of Ray's own words: no route, its bound of time, its bound of requests, no replica.
_MEANING = {404: errors.nobody_there, 408: errors.late, 429: errors.full, 503: errors.nobody_there}


def _content_type(message: Message) -> bytes:
    return next((value for name, value in message.get("headers", ()) if name.lower() == b"content-type"), b"")


def middlewares() -> list[Middleware]:
    """Ray Serve calls it in each of its proxies when they start."""
    from starlette.middleware import Middleware

    return [Middleware(LastWord)]
