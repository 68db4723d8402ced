"""The routes of the service, and what every request meets before them. FastAPI, on the methods of `Ingress`.

Always true: every error is of OpenAI's shape; a body is read no further than its bound; a browser's request comes from
this page or from an origin that the configuration names; nothing of the engine, of Ray or of another request can be
reached from here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from workflows.serve import errors, page
from workflows.serve.about import Example
from workflows.serve.chat import ChatRequest, parsed
from workflows.serve.errors import ApiError
from workflows.serve.ingress import Ingress, Taken
from workflows.serve.metrics import CONTENT_TYPE, LEFT, Metered
from workflows.serve.openapi import describe
from workflows.serve.settings import ServeSettings, is_loopback
from workflows.serve.stream import encoded

_log = logging.getLogger(__name__)
About = Callable[[int], dict[str, Any]]
MOST_HEADERS = 32 << 10  # bytes
BODY_S = 60.0  # seconds for a client to send its body
# By these a client could have Ray's proxy wait without end, or not notice that it has left.
OF_THE_PROXY = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
LARGE = 1 << 20  # bytes of a body that is read beside the event loop


def build(ingress: Ingress, settings: ServeSettings, about: About, examples: Sequence[Example] = ()) -> FastAPI:
    """The application of one ingress replica. `about`: what is told of the service, by the version that runs."""
    app = FastAPI(title="mmsearch", docs_url=None, redoc_url=None)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
        expose_headers=["x-request-id", "retry-after"],
    )
    app.add_middleware(Guard, settings=settings)
    _errors(app)
    _chat(app, ingress, settings)
    _looks(app, ingress)
    if settings.page:
        _page(app, ingress, about, examples)
    describe(app)
    return app


def _chat(app: FastAPI, ingress: Ingress, settings: ServeSettings) -> None:
    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        """Ask the agent: OpenAI's chat API, with its search steps and its evidence."""
        began, metered = time.monotonic(), ingress.meters.begin()
        try:
            metered.key = await ingress.admit(_authorization(http))
            taken = await ingress.take(await request_of(http, settings), metered.key, began)
            if taken.watched:
                return await _streamed(ingress, taken, metered)
            content = await ingress.answer(taken)
            metered.end(200)
            return Response(encoded(content), media_type="application/json", headers=_headers(taken))
        except BaseException as error:
            metered.end(_status(error))
            raise


async def _streamed(ingress: Ingress, taken: Taken, metered: Metered) -> Response:
    chunks = _metered(ingress.stream(taken), metered)
    first = await anext(chunks)  # what cannot be begun is an error with a status of its own
    return StreamingResponse(_told(first, chunks), media_type="text/event-stream", headers=_headers(taken))


async def _metered(chunks: AsyncGenerator[bytes, None], metered: Metered) -> AsyncGenerator[bytes, None]:
    """The same. It has begun before anybody listens, so that it also ends when nobody ever does."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
        metered.end(200)
    except BaseException as error:
        metered.end(_status(error))
        raise


async def _told(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def _status(error: BaseException) -> int:
    if isinstance(error, ApiError):
        return error.status
    return 500 if isinstance(error, Exception) else LEFT


def _headers(taken: Taken) -> dict[str, str]:
    return {"x-request-id": taken.identity, "Cache-Control": "no-store"}


def _looks(app: FastAPI, ingress: Ingress) -> None:
    @app.get("/v1/models")
    async def models(http: Request) -> dict[str, Any]:
        """The model that is served."""
        await ingress.admit(_authorization(http))
        model = {"id": ingress.model, "object": "model", "created": 0, "owned_by": "mmsearch"}
        return {"object": "list", "data": [model]}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether an agent can take a question, and which weights each runs."""
        standings = await ingress.standings()
        ready = any(one.healthy for one in standings)
        replicas = [
            {"version": s.version, "healthy": s.healthy, "refused": s.refused, "episodes": s.episodes}
            for s in standings
        ]
        status = "draining" if ingress.draining else "ready" if ready else "no agent is ready"
        content = {
            "status": status,
            "draining": ingress.draining,
            "requests": ingress.meters.under_way,
            "replicas": replicas,
        }
        return JSONResponse(content, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def metrics(http: Request) -> Response:
        """Counters of this process, for Prometheus."""
        await ingress.admit(_authorization(http))
        return Response(ingress.meters.text(), media_type=CONTENT_TYPE)


def _page(app: FastAPI, ingress: Ingress, about: About, examples: Sequence[Example]) -> None:
    @app.get("/about")
    async def about_it() -> dict[str, Any]:
        """What the page tells before the first question: model, bounds, where searches go, examples."""
        return about(max((one.version for one in await ingress.standings()), default=-1))

    app.router.routes.extend(page.routes(examples))


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def not_here(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "There is nothing here." if error.status_code == 404 else f"{error.detail}."
        return JSONResponse(ApiError(error.status_code, message).body, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(errors.invalid(f"{error.errors()[0]['msg']}.").body, 400)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        _log.error("a bug of the service", exc_info=error)
        return JSONResponse(errors.broken().body, 500)


def _authorization(http: Request) -> str | None:
    """As it was sent; of two headers both, which is nobody's key."""
    return ", ".join(http.headers.getlist("authorization")) or None


class Guard:
    """ASGI, before every route: refuses headers without end, and what a page of somebody else's makes a browser send.

    Without keys, being able to reach the port is what lets one in: so no foreign page may reach it through the browser
    of whoever sits here, neither directly (`Origin`) nor by a name of its own that points here (`Host`).
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope, Headers(scope=scope)) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse(error.body, error.status, headers=error.headers)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        if sum(len(name) + len(value) for name, value in headers.raw) > MOST_HEADERS:
            return ApiError(431, f"The headers are over {MOST_HEADERS >> 10} KiB.", code="headers_too_large")
        if named := [name for name in OF_THE_PROXY if name in headers]:
            return ApiError(400, f"The header {named[0]} is not taken here.", code="forbidden_header")
        host, client = headers.get("host", ""), (scope.get("client") or ("",))[0]
        named_here = is_loopback(host if host.endswith("]") else host.rsplit(":", 1)[0])
        if not self._settings.keys and not (named_here and is_loopback(client)):
            return ApiError(403, "Without keys this service answers to localhost alone.", code="forbidden_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self._settings.origins and origin.partition("://")[2] != host:
            return ApiError(403, "This origin is not let in (serve.origins).", code="forbidden_origin")
        return None


async def request_of(http: Request, settings: ServeSettings) -> ChatRequest:
    """The request, read no further than the bound, whatever its length is said to be. Raises `ApiError`."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send the request as application/json.", code="unsupported_media_type")
    most = int(settings.request.body_mib * (1 << 20))
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in http.stream():
                body += piece
                if len(body) > most:
                    raise errors.too_large(f"The body is over {settings.request.body_mib:g} MiB.")
    except ClientDisconnect:
        raise ApiError(LEFT, "The client left before its body was there.", code="client_left") from None
    except TimeoutError:
        raise ApiError(408, f"The body did not come within {BODY_S:g} s.", code="request_timeout") from None
    return await asyncio.to_thread(parsed, bytes(body)) if len(body) > LARGE else parsed(bytes(body))
