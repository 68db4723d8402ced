"""A real HTTP server on loopback that speaks the chat completions that are documented for OpenAI's API."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789"
SOON = {"retry-after-ms": "5"}


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


def completion(text: str | None) -> Reply:
    """A chat completion as documented, whose only choice says `text`."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [
            {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": text}}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return Reply(body=json.dumps(body).encode(), headers={"content-type": "application/json"})


def refusal(status: int, message: str = "no") -> Reply:
    body = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    return Reply(status, json.dumps(body).encode(), {"content-type": "application/json", **SOON})


@dataclass
class Server:
    """`answer` gets the number of a request and its body, decoded."""

    answer: Callable[[int, dict[str, Any]], Reply]
    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def asked(self) -> list[dict[str, Any]]:
        """What was quoted in each request, as the judge reads it."""
        texts = [request["messages"][0]["content"][-1]["text"] for request in self.requests]
        return [json.loads(text.partition("\n\n")[2]) for text in texts]

    def reply(self, path: str, key: str, body: bytes) -> Reply:
        if path != "/v1/chat/completions":
            return refusal(404, f"no {path}")
        with self.lock:
            number = len(self.requests)
            self.requests.append(json.loads(body))
            self.keys.append(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            reply = self.answer(number, self.requests[number])
            if reply.hangs:
                self.over.wait(30)
            return reply
        finally:
            with self.lock:
                self.at_once -= 1


@contextmanager
def served(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            reply = server.reply(self.path, self.headers.get("authorization", ""), body)
            if reply.hangs:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        thread.join()
        http.server_close()
