"""A service on 127.0.0.1 in a thread: it answers what it is told to, in the bytes that the real one writes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from workflows.serve.answers import Answered
from workflows.serve.stream import ChunkWriter

MODEL = "embedded"
EVIDENCE = {
    "number": 1, "title": "Velo", "text": "the founder of Velo is Ada Lune.", "url": "http://web/velo",
    "provider": "web", "turn": 1, "image_number": None, "crop_box": None,
}  # fmt: skip
SEARCH = {"type": "search", "turn": 1, "tool": "image_search", "expression": "red star", "box": None, "image": 1}
RESULT = {
    "type": "result", "turn": 1, "tool": "image_search", "outcome": "ok", "message": "", "provider": "web",
    "seconds": 0.25, "cost_usd": 0.001, "cached": False, "image": 1, "crop_box": [1, 2, 3, 4], "evidence": [EVIDENCE],
}  # fmt: skip


@dataclass
class Reply:
    """How a chat request is answered: pieces of a body one after the other. `cut`: the connection ends there."""

    pieces: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    between_s: float = 0.0
    cut: bool = False


@dataclass
class LoopbackService:
    """`reply` is asked anew for each chat request, with its body; `seen` are (path, headers, body)."""

    reply: Callable[[dict[str, Any]], Reply]
    url: str = ""
    models: Any = field(default_factory=lambda: {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
    models_status: int = 200
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    async def list_models(self, request: web.Request) -> web.Response:
        self.seen.append((request.path, dict(request.headers), None))
        return web.json_response(self.models, status=self.models_status)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.seen.append((request.path, dict(request.headers), asked))
        reply = self.reply(asked)
        if reply.status != 200 or not asked.get("stream"):
            return web.Response(
                body=b"".join(reply.pieces),
                status=reply.status,
                headers=reply.headers,
                content_type="application/json",
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **reply.headers})
        await response.prepare(request)
        for piece in reply.pieces:
            await response.write(piece)
            await asyncio.sleep(reply.between_s)
        if reply.cut and request.transport is not None:
            request.transport.close()
        return response


@contextmanager
def service(reply: Callable[[dict[str, Any]], Reply] | Reply) -> Iterator[LoopbackService]:
    """The server, running in a thread of its own, so that commands with an event loop of their own can ask it."""
    server = LoopbackService(reply if callable(reply) else lambda _: reply)
    started, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", server.list_models)
        app.router.add_post("/v1/chat/completions", server.chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await ending.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)
        loop.close()


def writer() -> ChunkWriter:
    """A writer that never waits for more text, and tells the usage."""
    return ChunkWriter("chatcmpl-1", 1, MODEL, clock=iter(range(10**6)).__next__, include_usage=True)


def choice(content: str, **changed: Any) -> Answered:
    """A choice with this content; its first `[1]`, where there is one, cites."""
    at = content.find("[1]")
    citation = {"start_index": at, "end_index": at + 3, "title": "Velo", "url": "http://web/velo"}
    values: dict[str, Any] = {
        "content": content, "reasoning": "", "finish_reason": "stop", "steps": (), "question_tokens": 20,
        "found_tokens": 10, "completion_tokens": 30, "tool_calls": 1, "cost_usd": 0.001, "version": 3,
        "annotations": () if at < 0 else ({"type": "url_citation", "url_citation": citation},),
        "search_unavailable": False,
    }  # fmt: skip
    return Answered(**{**values, **changed})


def episode(content: str = "Ada Lune [1]", **changed: Any) -> list[bytes]:
    """The pieces of a stream: one search, then this content."""
    chunks = writer()
    return [
        chunks.begin(1),
        chunks.step(0, {"type": "turn", "number": 1}),
        chunks.text(0, "reasoning_content", "a red star "),
        chunks.text(0, "reasoning_content", "is unknown."),
        chunks.step(0, SEARCH),
        chunks.step(0, RESULT),
        chunks.step(0, {"type": "turn", "number": 2}),
        chunks.text(0, "reasoning_content", "it is in [1]."),
        chunks.text(0, "content", content),
        chunks.finish(0, choice(content, **changed)),
        chunks.end(),
    ]


def error_body(message: str, code: str | None = None) -> bytes:
    """OpenAI's error shape."""
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode()
