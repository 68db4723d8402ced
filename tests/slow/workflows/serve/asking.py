"""How the tests of a service ask it and look at it: as a client does, and by a socket where no client would do."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.slow.workflows.serve.conftest import Service

WITHIN_S = 60.0  # for a request on a busy machine
LOOK_S = 0.2
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def messages(service: Service, example: dict[str, Any]) -> list[dict[str, Any]]:
    """An example as a question with its picture."""
    with urllib.request.urlopen(f"{service.url}/{example['picture']}", timeout=30) as answer:
        picture = f"data:image/png;base64,{base64.b64encode(answer.read()).decode()}"
    content = [{"type": "text", "text": example["question"]}, {"type": "image_url", "image_url": {"url": picture}}]
    return [{"role": "user", "content": content}]


def examples(service: Service) -> list[list[Any]]:
    """The messages of each; some of them are searched for, as the page's test sees, too."""
    return [messages(service, example) for example in service.about["examples"]]


def extra(model: Any) -> dict[str, Any]:
    """The fields that OpenAI's types do not know."""
    return model.model_extra or {}


def results(choice: Any) -> list[dict[str, Any]]:
    """What searches of a choice found."""
    return [step for step in extra(choice)["search_steps"] if step["type"] == "result"]


def readiness(url: str) -> dict[str, Any]:
    """What /readyz tells; nothing while nobody answers there."""
    try:
        return httpx.get(f"{url}/readyz", timeout=30).json()
    except (httpx.TransportError, ValueError):
        return {}


def episodes(url: str) -> int:
    """Under way on all agents; -1 where no agent says."""
    replicas = readiness(url).get("replicas")
    return sum(one["episodes"] for one in replicas) if replicas else -1


def counted(service: Service, name: str, label: str = "", key: str = "none") -> float:
    """A number of /metrics, the sum where there are several with this label. An agent that is full delays it not."""
    headers = {"Authorization": f"Bearer {key}"}
    text = httpx.get(f"{service.url}/metrics", headers=headers, timeout=30).raise_for_status().text
    lines = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(number) for labels, number in lines if label in labels)


async def until(look: Callable[[], bool], seconds: float) -> None:
    """Wait for it beside everything else. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(look):
            await asyncio.sleep(LOOK_S)


async def told(stream: Any) -> str | None:
    """Why a stream ended; None where it broke off."""
    reason = None
    async for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
    return reason


def sent(url: str, data: bytes) -> int | None:
    """The status that bytes are answered with; None for a connection that is closed without one.

    Raises TimeoutError where neither comes.
    """
    parts = urlsplit(url)
    came = b""
    with socket.create_connection((parts.hostname or "", parts.port or 80), WITHIN_S) as connection:
        try:
            connection.sendall(data)
            while not _STATUS.match(came) and (piece := connection.recv(4096)):
                came += piece
        except ConnectionError:  # it hung up on what it would not read
            pass
    status = _STATUS.match(came)
    assert status or not came, f"no HTTP comes back: {came[:200]!r}"
    return int(status[1]) if status else None


def raw(host: str, body: bytes, headers: tuple[tuple[str, str], ...]) -> bytes:
    """A request as it is written, with header values that no client would send."""
    lines = (("Host", host), *headers, ("Content-Length", str(len(body))), ("Connection", "close"))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode("latin-1") + b"\r\n" + body
