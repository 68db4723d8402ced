"""From text to an address of the web, in the one spelling that is judged and connected to. Pure.

Always true of what `web_url` returns: http or https, an allowed port, no userinfo, no fragment; its host is either an
IP address in canonical form or a full name of plain ASCII labels. Other spellings of IPv4 (decimal, octal,
hexadecimal, short) are refused unread: resolvers take them for addresses, people do not write them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from ipaddress import IPv4Address

from yarl import URL

from actors.search.fetch.addresses import literal, refused_name
from actors.search.seams import ErrorKind, ProviderError

MAX_URL_CHARS = 2048
_USERINFO = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//[^/?#]*@", re.IGNORECASE)
_NUMBER = re.compile(r"(?:\d+|0x[0-9a-f]*)\Z")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")


def refused(message: str) -> ProviderError:
    """The error of an address, type or size that will never be accepted."""
    return ProviderError(ErrorKind.BAD_REQUEST, message)


def web_url(text: str, ports: Collection[int], base: URL | None = None) -> URL:
    """`text`, relative to `base` if it is, as an address of the web. Raises ProviderError(BAD_REQUEST)."""
    text = text.strip(" \t\r\n")
    if not text or len(text) > MAX_URL_CHARS:
        raise refused(f"an address of {len(text)} characters")
    if "\\" in text or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise refused("an address with a backslash or a control character")
    if _USERINFO.match(text):
        raise refused("an address with a user name")
    try:
        url = URL(text) if base is None else base.join(URL(text))
        port = url.port
    except (ValueError, TypeError) as error:
        raise refused("not an address") from error
    if url.scheme not in ("http", "https"):
        raise refused(f"not an address of the web but of scheme {url.scheme[:20]!r}")
    if url.raw_user is not None or url.raw_password is not None:
        raise refused("an address with a user name")
    host = _host(url.raw_host or "")
    if port not in ports:
        raise refused(f"port {port} is not one of the web's")
    authority = f"[{host}]" if ":" in host else host
    if port != (443 if url.scheme == "https" else 80):
        authority = f"{authority}:{port}"
    tail = url.raw_path_qs if url.raw_path_qs.startswith("/") else f"/{url.raw_path_qs}"
    return URL(f"{url.scheme}://{authority}{tail}", encoded=True)


def _host(raw: str) -> str:
    """The host in canonical form. yarl has made it ASCII, full-width and circled digits included."""
    host = raw.casefold()
    host = host.removesuffix(".")
    if ":" in host:
        address = literal(host)
        if address is None or "%" in host:
            raise refused("not an IPv6 address, or one that is bound to an interface")
        return str(address)
    labels = host.split(".")
    if _NUMBER.match(labels[-1]):
        address = literal(host)
        if not isinstance(address, IPv4Address):
            raise refused("a number for a host is only read as four decimal parts")
        return str(address)
    if len(host) > 253 or not all(_LABEL.match(label) for label in labels):
        raise refused("not a host name")
    why = refused_name(host)
    if why is not None:
        raise refused(f"host {host[:60]!r} is {why}")
    return host
