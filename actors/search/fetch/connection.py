"""Connections to vetted addresses only.

Always true: a name is resolved once per connection, every address in the answer is judged, and the connection goes to
those very addresses, so an answer that changes between judging and connecting changes nothing. No socket is made for
an address that the policy refuses, whoever asks for it. Neither cookies nor a proxy of the environment nor .netrc
play a part, and no connection is used twice.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from actors.search.fetch.addresses import IPAddress
from actors.search.fetch.decoding import ACCEPTED
from actors.search.fetch.urls import refused
from actors.search.seams import ErrorKind, ProviderError

Resolve = Callable[[str], Awaitable[Sequence[str]]]  # a name to its addresses; raises OSError
AddressPolicy = Callable[[IPAddress], str | None]  # why not, or None
_RESOLVING_THREADS = 16  # a slow name server must not take the threads that others work in
_MAX_ADDRESSES = 8  # of one name that are tried
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class SystemResolver:
    """The system's own resolver, in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVING_THREADS, thread_name_prefix="resolve")

    async def __call__(self, name: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _addresses, name)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(name: str) -> list[str]:
    # The final dot keeps search lists out: a public name must not be completed to one of the inside.
    rows = socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM)
    return [str(row[4][0]) for row in rows]


class VettedResolver(AbstractResolver):
    """What the connector asks: addresses of a name, all of them good, or ProviderError."""

    def __init__(self, resolve: Resolve, refuse: AddressPolicy) -> None:
        self._resolve, self._refuse = resolve, refuse

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._resolve(host)
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise refused(f"there is no host {host[:60]!r}") from error
            raise ProviderError(ErrorKind.TRANSIENT, f"host {host[:60]!r} cannot be resolved") from error
        except (OSError, UnicodeError) as error:
            raise ProviderError(ErrorKind.TRANSIENT, f"host {host[:60]!r} cannot be resolved") from error
        vetted = [vet(text, host, self._refuse) for text in found]  # one bad answer spoils them all
        if not vetted:
            raise refused(f"host {host[:60]!r} has no address")
        return [_result(host, port, address) for address in vetted[:_MAX_ADDRESSES]]

    async def close(self) -> None:
        return None


def vet(text: str, host: str, refuse: AddressPolicy) -> IPAddress:
    """The address that `text` spells. Raises ProviderError(BAD_REQUEST) when it must not be connected to."""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise refused(f"host {host[:60]!r} resolves to something that is no address") from error
    why = refuse(address)
    if why is not None:
        raise refused(f"host {host[:60]!r} is at an address that is not fetched from: {why}")
    return address


def _result(host: str, port: int, address: IPAddress) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=str(address),
        port=port,
        family=socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


def guarded_session(
    resolve: Resolve, refuse: AddressPolicy, user_agent: str, tls: ssl.SSLContext | None
) -> aiohttp.ClientSession:
    """A session that can only reach what `refuse` lets through. `tls`: None for the system's authorities."""

    def vetted_socket(info: tuple) -> socket.socket:
        family, kind, protocol, _, (host, *_) = info
        vet(str(host), str(host), refuse)
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        resolver=VettedResolver(resolve, refuse),
        use_dns_cache=False,  # its answers would outlive their judgement
        force_close=True,
        limit=0,  # callers bound how many they ask for at once
        socket_factory=vetted_socket,
        ssl=tls if tls is not None else True,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": user_agent, "Accept-Encoding": ACCEPTED},
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),  # ours is over all
        auto_decompress=False,  # bounded by us
        trust_env=False,
    )
