"""Clients of the service: many at once, each on to its next question, or as many a second as are offered.

Always true: every request that was begun becomes one `Exchange`, whatever becomes of it, within its own deadline; a
client that was not answered waits a moment before it asks again.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp

from workflows.bench.serve_exchange import Exchange, Listener, Outcome, failed, hung, refusal

GRACE_S = 10.0  # beyond a request's own time; the service ends it 5 s after that at the latest
AFTER_REFUSAL_S = 0.2  # until a client that was not answered asks again
LONGEST_LINE = 4 << 20  # bytes; a step holds all that a search found


def chat_body(model: str, text: str, pictures: Sequence[bytes], *, stream: bool, seconds: float) -> bytes:
    """A greedy request with PNG or JPEG pictures. `seconds`: the most that it may take, waiting included."""
    shown = [{"type": "image_url", "image_url": {"url": _data_url(data)}} for data in pictures]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}],
        "temperature": 0,
        "limits": {"seconds": seconds},
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def _data_url(picture: bytes) -> str:
    media = "image/jpeg" if picture.startswith(b"\xff\xd8") else "image/png"
    return f"data:{media};base64,{base64.b64encode(picture).decode('ascii')}"


class ChatClient:
    """Any number of clients of one service. Use `async with`. `seconds`: the most that a request may take."""

    def __init__(self, url: str, seconds: float, key: str = "") -> None:
        self._url, self._seconds = url, seconds
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ChatClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(), read_bufsize=LONGEST_LINE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def model(self) -> str:
        """The name of the model there. Raises aiohttp's errors, LookupError or ValueError."""
        assert self._session is not None
        async with (
            asyncio.timeout(self._seconds),
            self._session.get(f"{self._url}/v1/models", headers=self._headers) as response,
        ):
            response.raise_for_status()
            return str((await response.json())["data"][0]["id"])

    async def ask(self, body: bytes) -> Exchange:
        """One request to its end. Never raises for what the service does."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds + GRACE_S):
                return await self._ask(body, began)
        except TimeoutError:
            return hung(began, time.monotonic())
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            return failed(began, time.monotonic(), 0, f"{type(error).__name__}: {error}"[:200], shaped=False)

    async def _ask(self, body: bytes, began: float) -> Exchange:
        assert self._session is not None
        async with self._session.post(f"{self._url}/v1/chat/completions", data=body, headers=self._headers) as response:
            if response.status != 200:
                content = await response.read()
                return refusal(began, time.monotonic(), response.status, response.headers, content)
            heard = Listener(began)
            if response.content_type == "text/event-stream":
                async for line in response.content:
                    heard.line(line, time.monotonic())
            else:
                heard.whole(await response.read())
            return heard.ended(time.monotonic())


async def one_by_one(client: ChatClient, bodies: Sequence[bytes]) -> list[Exchange]:
    """Each when the one before has ended."""
    return [await client.ask(body) for body in bodies]


class Crowd:
    """So many clients, each asking on and on, until the `async with` ends; those under way then end as they will."""

    def __init__(self, client: ChatClient, bodies: Sequence[bytes], clients: int) -> None:
        self._client, self._clients = client, clients
        self._bodies: Iterator[bytes] = itertools.cycle(bodies)
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.exchanges: list[Exchange] = []

    async def __aenter__(self) -> Crowd:
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        if kind is not None:  # what they are told does not count any more
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=kind is not None)

    async def _ask_on(self) -> None:
        while not self._over:
            exchange = await self._client.ask(next(self._bodies))
            self.exchanges.append(exchange)
            if exchange.outcome is not Outcome.ANSWERED:
                await asyncio.sleep(AFTER_REFUSAL_S)


async def crowded(client: ChatClient, bodies: Sequence[bytes], clients: int, seconds: float) -> list[Exchange]:
    """What a crowd was told within so many seconds, and to the end of what was under way then."""
    async with Crowd(client, bodies, clients) as crowd:
        await asyncio.sleep(seconds)
    return crowd.exchanges


def arrivals(per_second: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Times from 0 at which requests come, independent of each other (a Poisson process)."""
    rng = random.Random(seed)
    at = rng.expovariate(per_second)
    while at < seconds:
        yield at
        at += rng.expovariate(per_second)


async def offered(
    client: ChatClient, bodies: Sequence[bytes], per_second: float, seconds: float, most: int
) -> tuple[list[Exchange], int]:
    """Requests that come whether or not others were answered. Returns what became of them, and how many were never
    sent because `most` were under way: none, unless the service keeps them waiting without a bound.
    """
    began, unsent = time.monotonic(), 0
    under_way: set[asyncio.Task[None]] = set()
    exchanges: list[Exchange] = []

    async def ask(body: bytes) -> None:
        exchanges.append(await client.ask(body))

    for at, body in zip(arrivals(per_second, seconds), itertools.cycle(bodies), strict=False):
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        if len(under_way) >= most:
            unsent += 1
            continue
        task = asyncio.create_task(ask(body))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    return exchanges, unsent
