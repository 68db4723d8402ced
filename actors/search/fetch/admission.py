"""Whether an address may be read, judged by its spelling alone: its form, its host, the domain lists. Pure.

What a name resolves to is judged where a connection is made (connection.py). Who has pages fetched by somebody else
makes none, and asks for no more than this lets through: inside names and addresses stay inside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from yarl import URL

from actors.search.fetch import addresses
from actors.search.fetch.connection import AddressPolicy, vet
from actors.search.fetch.domains import DomainRules
from actors.search.fetch.urls import web_url

WEB_PORTS = (80, 443)


class Admission:
    """`allow`, `deny` and `presets` as in FetchSettings. Raises UserError for a preset or a rule of no form."""

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        presets: Iterable[str] = (),
        *,
        ports: Collection[int] = WEB_PORTS,
        refuse: AddressPolicy = addresses.refusal,
    ) -> None:
        """`refuse`: the policy for hosts that are addresses; for tests and for code."""
        self._domains, self._ports, self._refuse = DomainRules(allow, deny, presets), ports, refuse

    def admitted(self, text: str, base: URL | None = None) -> URL:
        """`text`, relative to `base` if it is, in the spelling that was judged. Raises ProviderError(BAD_REQUEST)."""
        url = web_url(text, self._ports, base)
        host = url.raw_host or ""
        if addresses.literal(host) is not None:
            vet(host, host, self._refuse)  # names are judged when a connection resolves them
        self._domains.check(url)
        return url
