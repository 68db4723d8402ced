"""How an adapter talks to its provider: one request, then one JSON object or one ProviderError.

Always true:
- one `send` is one request on the wire. Nothing is tried again and no redirect is followed, so that what a quota
  lease was taken for is what the provider counts;
- the key is read from the environment when it is needed and kept in no object; errors, logs, reprs and pickles
  never show it, and no error drags along a library's exception, which may quote an address with the key in it;
- nothing else of the environment has a say: no proxies, no .netrc, no cookies;
- an answer is bounded in time and in bytes, counted after decompression.

What an error means is for the adapter's `Judge` to read in the body; the status decides where the body says nothing,
because one status means several things (SerpApi's 429 is a rate or an empty account, Brave's 422 a key or a query).
"""

from __future__ import annotations

import asyncio
import json as codec
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from html import escape
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError

MAX_BYTES = 8 << 20  # of an answer; a page of results has tens of kilobytes
MAX_RETRY_AFTER = 3600.0  # seconds; what asks for more is asked again after this
MAX_TOLD = 200  # characters of a provider's words in an error
CONNECTIONS = 128  # open at once to one provider
CONNECT_S = 10.0  # of the time that an answer may take, for the connection
_CHUNK = 1 << 16
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_BY_STATUS = {
    400: ErrorKind.BAD_REQUEST,
    401: ErrorKind.BAD_KEY,
    402: ErrorKind.NO_CREDIT,
    403: ErrorKind.BAD_KEY,
    408: ErrorKind.TRANSIENT,
    413: ErrorKind.BAD_REQUEST,
    414: ErrorKind.BAD_REQUEST,
    422: ErrorKind.BAD_REQUEST,
    425: ErrorKind.TRANSIENT,
    429: ErrorKind.RATE,
}


@dataclass(frozen=True)
class Reply:
    """An answer. `body`: its JSON object, empty where an error came without one; `headers` are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Complaint:
    """What a provider says instead of answering. `kind` None: its status tells; `retry_after` None: its header."""

    text: str
    kind: ErrorKind | None = None
    retry_after: float | None = None


Judge = Callable[[Reply], Complaint | None]  # None: no complaint in this body; the status still has its say


class JsonApi:
    """One provider's endpoint. Made without I/O; connections are opened on the loop that first sends."""

    def __init__(
        self,
        name: str,
        base_url: str,
        judge: Judge,
        *,
        key_env: str = "",
        timeout: float = 30.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`name`: for errors; `key_env`: variable that holds the key; `timeout`: seconds for one answer.

        Raises UserError for an address that is none, or that carries credentials, and for a `key_env` that is not the
        name of a variable: it may be the key itself, so neither is quoted.
        """
        if not _is_base(base_url):
            raise UserError(f"{name}: base_url must be like https://host/path, without credentials and query.")
        if key_env and not _VARIABLE.fullmatch(key_env):
            raise UserError(f"{name}: key_env is the name of an environment variable, in capitals, not the key.")
        if not timeout > 0:
            raise UserError(f"{name}: timeout is in seconds and must be above 0.")
        self.name, self._base, self._judge = name, base_url.rstrip("/"), judge
        self._key_env, self._timeout, self._wall = key_env, timeout, wall
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    def key(self) -> str:
        """The key, read from the environment now. Raises ProviderError naming the variable where it holds none."""
        key = self._secret()
        if not key:
            raise self._no_key("is not set")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise self._no_key("holds what no key is made of")
        return key

    def _no_key(self, why: str) -> ProviderError:
        text = f"{self.name} has no key: the environment variable {self._key_env} {why}"
        return ProviderError(ErrorKind.BAD_KEY, text, sent=False)

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        form: aiohttp.FormData | None = None,
        hidden: Iterable[str] = (),
    ) -> Reply:
        """The reply to a request that was accepted. Raises ProviderError.

        `params` are sent in the order of their names, so that equal requests are equal bytes, which some providers
        answer from their cache. `hidden`: what, beside the key, no error may quote, such as a signed address.
        """
        status, head, data = await self._exchange(
            method,
            self._base + path,
            headers=dict(headers or {}),
            params=dict(sorted((params or {}).items())),
            json=json,
            data=form,
        )
        asked = retry_after(head.get("Retry-After"), self._wall())
        body = _json_object(data)
        if body is None and status < 300:
            raise self.error(ErrorKind.SCHEMA, f"answered {status} with {_found(head)}", hidden=hidden)
        reply = Reply(status, head, body or {})
        complaint = self._judge(reply)
        if complaint is None and status < 300:
            return reply
        complaint = complaint or Complaint("")
        told = complaint.text or (_found(head) if body is None else "")
        wait = asked if complaint.retry_after is None else min(max(complaint.retry_after, 0.0), MAX_RETRY_AFTER)
        raise self.error(complaint.kind or kind_of(status), f"answered {status}: {told}", wait, hidden)

    def error(
        self, kind: ErrorKind, text: str, retry_after: float | None = None, hidden: Iterable[str] = ()
    ) -> ProviderError:
        """An error in this provider's name: one line, bounded, without secrets."""
        for secret in (self._secret(), *hidden):
            if secret:
                text = _spellings(secret).sub("[hidden]", text)
        text = " ".join(text.split())[:MAX_TOLD].rstrip(" :")
        return ProviderError(kind, f"{self.name} {text}", retry_after if kind.retryable else None)

    async def close(self) -> None:
        """Close the running loop's connections; a later `send` opens new ones."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}}

    def _secret(self) -> str:
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    async def _exchange(self, method: str, url: str, **request: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body, whatever they are. Raises ProviderError where there is no whole answer."""
        try:
            async with self._session().request(method, url, allow_redirects=False, **request) as response:
                data = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK):
                    data += chunk
                    if len(data) > MAX_BYTES:
                        break
                else:
                    return response.status, response.headers, bytes(data)
                kind, problem = ErrorKind.SCHEMA, f"sent more than {MAX_BYTES} bytes"
        except TimeoutError:
            kind, problem = ErrorKind.TRANSIENT, f"gave no answer within {self._timeout:g} s"
        except aiohttp.ClientResponseError:
            kind, problem = ErrorKind.SCHEMA, "answered something that is not HTTP"
        except (aiohttp.ClientError, OSError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            kind, problem = ErrorKind.TRANSIENT, f"did not answer: {reason}"
        raise self.error(kind, problem)  # outside of the handlers: nothing is chained to it

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            self._sessions = {known: kept for known, kept in self._sessions.items() if not known.is_closed()}
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "User-Agent": "mmsearch-ray"},
                timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_S),
                trust_env=False,
            )
            # aiohttp sends a GET twice when the connection breaks, without a word; there is no public switch
            session._retry_connection = False
        return session


def kind_of(status: int) -> ErrorKind:
    """What a status means where the body does not say. Unknown ones, redirects and 404 among them, are not this API."""
    return ErrorKind.TRANSIENT if status >= 500 else _BY_STATUS.get(status, ErrorKind.SCHEMA)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait, in 0..MAX_RETRY_AFTER; None for what cannot be read.

    It may be a number of seconds, with a fraction too, or a date (RFC 9110, 10.2.3). `now`: unix seconds.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _spellings(secret: str) -> re.Pattern[str]:
    """`secret`, each of its characters percent-encoded, as HTML has it or as it is: libraries differ in which."""
    ways = (("".join(f"%{byte:02x}" for byte in c.encode("utf-8", "replace")), escape(c), c) for c in secret)
    return re.compile("".join(f"(?:{'|'.join(map(re.escape, each))})" for each in ways), re.IGNORECASE)


def _found(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "something without a type") + " in place of a JSON object"


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        body = codec.loads(data)
    except (ValueError, RecursionError):  # torn, not text, nested without end, a number of a million digits
        return None
    return body if isinstance(body, dict) else None


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no number
    except (ValueError, TypeError, AttributeError):
        return False
    bare = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bare
