"""Whether a site's robots.txt lets an address be fetched: asked once, remembered for a day.

Always true: at most one fetch of a site's robots.txt is under way; what is remembered is bounded in sites and in
bytes; a site whose file cannot be had is closed until the next try, one that has none (4xx) is open. The file is
fetched by the function given, which is the guarded fetcher's own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from yarl import URL

from actors.agent.seams import Clock
from actors.search.fetch.robots import ALLOW_ALL, DISALLOW_ALL, RobotRules, parse
from actors.search.fetch.urls import refused
from actors.search.seams import ErrorKind, ProviderError

DAY = 24 * 3600.0  # seconds a file is used for; RFC 9309, section 2.4
UNREACHABLE_FOR = 300.0  # seconds until a site whose file could not be had is asked again
_MAX_WEIGHT = 32 * 2**20  # bytes of rules kept for all sites together


class HttpRefusal(ProviderError):
    """A server answered with `status`, and not with what was asked for."""

    def __init__(self, kind: ErrorKind, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(kind, message, retry_after)
        self.status = status


@dataclass(frozen=True)
class _Known:
    rules: RobotRules
    until: float  # on the clock
    reached: bool


class RobotsGate:
    """Asks `fetch` for the robots.txt of a site when it is first met. For one event loop."""

    def __init__(self, fetch: Callable[[URL], Awaitable[bytes]], product: str, sites: int, clock: Clock) -> None:
        """`fetch` bounds its own time and raises ProviderError; `product`: the token to read the files for."""
        self._fetch, self._product, self._sites, self._clock = fetch, product, sites, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._flights: dict[str, asyncio.Task[_Known]] = {}
        self._weight = 0

    async def check(self, url: URL) -> None:
        """Raises ProviderError: BAD_REQUEST where the file forbids `url`, TRANSIENT where it cannot be had."""
        known = await self._of(url)
        if known.rules.allows(url.raw_path_qs):
            return
        if known.reached:
            raise refused(f"robots.txt of {url.raw_host!r} does not allow this address")
        raise ProviderError(ErrorKind.TRANSIENT, f"robots.txt of {url.raw_host!r} cannot be had")

    async def _of(self, url: URL) -> _Known:
        site = f"{url.scheme}://{url.raw_host}:{url.port}"
        known = self._known.get(site)
        if known is not None and self._clock() < known.until:
            self._known.move_to_end(site)
            return known
        flight = self._flights.get(site)
        if flight is None:
            flight = asyncio.create_task(self._fly(site, url.with_path("/robots.txt").with_query(None)))
            self._flights[site] = flight
        return await asyncio.shield(flight)  # a caller who leaves does not take the file from its siblings

    async def _fly(self, site: str, address: URL) -> _Known:
        try:
            known = await self._ask(address)
            self._remember(site, known)
            return known
        finally:
            del self._flights[site]

    async def _ask(self, address: URL) -> _Known:
        now = self._clock()
        try:
            body = await self._fetch(address)
        except HttpRefusal as error:
            if 400 <= error.status < 500:
                return _Known(ALLOW_ALL, now + DAY, True)
            return _Known(DISALLOW_ALL, now + UNREACHABLE_FOR, False)
        except ProviderError:
            return _Known(DISALLOW_ALL, now + UNREACHABLE_FOR, False)
        # Up to half a megabyte of rules: its parsing is kept off the loop.
        return _Known(await asyncio.to_thread(parse, body, self._product), now + DAY, True)

    def _remember(self, site: str, known: _Known) -> None:
        self._forget(site)
        self._known[site] = known
        self._weight += known.rules.weight
        while len(self._known) > self._sites or self._weight > _MAX_WEIGHT:
            self._forget(next(iter(self._known)))

    def _forget(self, site: str) -> None:
        known = self._known.pop(site, None)
        if known is not None:
            self._weight -= known.rules.weight

    async def close(self) -> None:
        """Cancel what is under way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
