"""One address of the open web to its bytes, or a typed refusal.

    text -> web_url -> domain lists -> robots.txt -> vetted connection -> status, type, bounded body
              ^                                                              |
              +------------------------- redirect, at most max_redirects ----+

Always true: every hop passes every check; the deadline covers all hops with names, headers and bodies; what a hop
sends (cookies, user names, types) has no influence on what the next one is sent. Failures are ProviderErrors:
BAD_REQUEST for what will be refused again, RATE for 429, TRANSIENT for what may pass, SCHEMA for what is not HTTP.
"""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from actors.agent.seams import Clock
from actors.search.fetch import addresses, robots
from actors.search.fetch.admission import Admission
from actors.search.fetch.connection import AddressPolicy, Resolve, SystemResolver, guarded_session
from actors.search.fetch.decoding import BodyTooLong, BoundedBody
from actors.search.fetch.permission import HttpRefusal, RobotsGate
from actors.search.fetch.settings import FetchSettings
from actors.search.fetch.urls import refused
from actors.search.seams import ErrorKind, ProviderError

ANY_TYPE = "*/*"
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Fetched:
    """An answer with a 2xx status. `url`: as asked; `final_url`: after redirects; `content_type` without
    parameters, lower case; `charset`: "" where none was given; `fetched_at`: unix seconds."""

    url: str
    final_url: str
    status: int
    content_type: str
    body: bytes
    charset: str
    fetched_at: float


@dataclass(frozen=True)
class _Limits:
    """What one kind of fetch takes. `cut`: what is too long is shortened instead of refused."""

    accept: tuple[str, ...]
    max_bytes: int
    max_body_bytes: int
    cut: bool = False


class GuardedFetcher:
    """Fetches with GET alone. For one event loop; `close` when done."""

    def __init__(
        self,
        settings: FetchSettings | None = None,
        *,
        resolve: Resolve | None = None,
        refuse: AddressPolicy = addresses.refusal,
        clock: Clock = time.monotonic,
        wall: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`clock` ages what is remembered, `wall` dates what is fetched. `resolve`, `refuse` and `tls` are for
        tests and for code; no configuration reaches them. Raises UserError for settings of no sense."""
        self._settings = settings if settings is not None else FetchSettings()
        self._system = SystemResolver()  # starts no thread before it is asked
        self._resolve: Resolve = resolve if resolve is not None else self._system
        self._refuse, self._wall, self._tls = refuse, wall, tls
        self._admission = Admission(
            self._settings.allow,
            self._settings.deny,
            self._settings.deny_presets,
            ports=self._settings.ports,
            refuse=refuse,
        )
        self._robots = RobotsGate(self._robots_file, self._settings.product, self._settings.robots_sites, clock)
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, *, accept: Collection[str]) -> Fetched:
        """The body behind `url` if its type is in `accept`. Raises ProviderError."""
        limits = _Limits(tuple(accept), self._settings.max_bytes, self._settings.max_body_bytes)
        async with self._failures_told():
            return await self._follow(url, limits, ask_robots=self._settings.robots)

    async def close(self) -> None:
        await self._robots.close()
        if self._session is not None:
            await self._session.close()
        self._system.close()

    async def _robots_file(self, url: URL) -> bytes:
        """Any type that comes with a success is read as rules; redirects are followed, to other hosts as well."""
        limits = _Limits((ANY_TYPE,), 2 * robots.MAX_BYTES, robots.MAX_BYTES, cut=True)
        async with self._failures_told():
            return (await self._follow(str(url), limits, ask_robots=False)).body

    # --- hops ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _failures_told(self) -> AsyncIterator[None]:
        """Inside, time is bounded; outside, there are only ProviderErrors."""
        try:
            async with asyncio.timeout(self._settings.deadline):
                yield
        except ProviderError:
            raise
        except TimeoutError as error:
            raise ProviderError(ErrorKind.TRANSIENT, f"no answer in {self._settings.deadline:g} s") from error
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
            raise refused("the server's certificate does not hold") from error
        except aiohttp.ClientPayloadError as error:
            raise ProviderError(ErrorKind.TRANSIENT, "the body broke off") from error
        except aiohttp.ClientResponseError as error:
            raise ProviderError(ErrorKind.SCHEMA, "the answer is not HTTP") from error
        except aiohttp.InvalidURL as error:
            raise refused("not an address") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderError(ErrorKind.TRANSIENT, f"no connection: {type(error).__name__}") from error

    async def _follow(self, url: str, limits: _Limits, *, ask_robots: bool) -> Fetched:
        here = self._admission.admitted(url)
        for _ in range(self._settings.max_redirects + 1):
            if ask_robots:
                await self._robots.check(here)
            async with self._open().get(
                here, allow_redirects=False, headers={"Accept": ", ".join(limits.accept)}
            ) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(url, here, response, limits)
                target = response.headers.get("Location")  # the body is not waited for
            if target is None:
                raise refused("a redirect to nowhere")
            here = self._admission.admitted(target, here)
        raise refused(f"more than {self._settings.max_redirects} redirects")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = guarded_session(self._resolve, self._refuse, self._settings.user_agent, self._tls)
        return self._session

    # --- answers ------------------------------------------------------------------------------------------

    async def _read(self, asked: str, here: URL, response: aiohttp.ClientResponse, limits: _Limits) -> Fetched:
        self._check_status(response)
        content_type, charset = _content_type(response.headers.get("Content-Type", ""))
        if content_type not in limits.accept and ANY_TYPE not in limits.accept:
            raise refused(f"a body of type {content_type[:60]!r}")
        declared = response.content_length
        if declared is not None and declared > limits.max_bytes and not limits.cut:
            raise refused(f"a body of {declared} bytes, {limits.max_bytes} are read")
        body = BoundedBody(
            ",".join(response.headers.getall("Content-Encoding", [])), limits.max_bytes, limits.max_body_bytes
        )
        try:
            async for chunk in response.content.iter_any():
                body.feed(chunk)
            whole = body.end()
        except BodyTooLong as error:
            if not limits.cut:
                raise
            whole = error.kept
        return Fetched(asked, str(here), response.status, content_type, whole, charset, self._wall())

    def _check_status(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        message = f"the server answered {status}"
        retry_after = retry_after_seconds(
            response.headers.get("Retry-After", ""), self._wall(), self._settings.longest_retry_after
        )
        if status == 429:
            raise HttpRefusal(ErrorKind.RATE, message, status, retry_after)
        if status >= 500 or status in (408, 425):
            raise HttpRefusal(ErrorKind.TRANSIENT, message, status, retry_after)
        raise HttpRefusal(ErrorKind.BAD_REQUEST, message, status)


def retry_after_seconds(header: str, now: float, longest: float) -> float | None:
    """Seconds that a Retry-After header asks for (a number of seconds or an HTTP date; `now` in unix seconds),
    between 0 and `longest`; None for a header that says nothing readable."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:12]), longest))
    try:
        until = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return min(max(0.0, until - now), longest)


def _content_type(header: str) -> tuple[str, str]:
    """Type and charset of a Content-Type header, lower case; "" for what it does not say."""
    kind, *parameters = header.lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            return kind.strip(), value.strip().strip("\"'")
    return kind.strip(), ""
