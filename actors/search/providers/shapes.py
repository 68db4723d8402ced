"""Pieces of requests and replies that several providers share: rows into hits, addresses, text, locales.

Rows come from strangers: any field may be missing, null or of another type, and none of the readers here raises for it.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from actors.search.providers.http import JsonApi
from actors.search.seams import ErrorKind, ImageHit, TextHit
from cluster.errors import UserError

H = TypeVar("H", TextHit, ImageHit)

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--[^<>]*-->")
_COUNTRY = re.compile(r"[a-z]{2}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,4})*")


def listed(api: JsonApi, body: Mapping[str, Any], name: str) -> list[Any] | None:
    """The list under `name`, None where there is none. Raises ProviderError for anything else in its place."""
    found = body.get(name)
    if found is not None and not isinstance(found, list):
        raise api.error(ErrorKind.SCHEMA, f"gave {type(found).__name__} as {name!r}, where a list belongs")
    return found


def hits(api: JsonApi, rows: Sequence[object], k: int, read: Callable[[dict[str, Any]], H]) -> list[H]:
    """The first `k` rows as hits, without those that have no usable address or one that came before.

    Raises ProviderError (SCHEMA) when there are rows and not one of them has an address: the field has another name
    now, and that is not the same as finding nothing.
    """
    found: dict[str, H] = {}
    for row in rows:
        hit = read(row) if isinstance(row, dict) else None
        if hit is not None and hit.url:
            found.setdefault(hit.url, hit)
    if rows and not found:
        raise api.error(ErrorKind.SCHEMA, f"gave {len(rows)} rows, and none with a usable address")
    return list(found.values())[:k]


def web_url(value: object) -> str:
    """`value` where it is an absolute http(s) address, else ""."""
    url = text(value)
    if any(c.isspace() or not c.isprintable() for c in url):
        return ""
    try:
        parts = urlsplit(url)
        return url if parts.scheme in ("http", "https") and parts.hostname else ""
    except ValueError:
        return ""


def text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def number(value: object) -> float:
    """0 for what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        return float(value) if math.isfinite(value) else 0.0
    except OverflowError:  # an integer of hundreds of digits
        return 0.0


def mapping(value: object) -> dict[str, Any]:
    """`value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def plain(markup: str) -> str:
    """The text of a snippet with tags and entities in it. Entities come last: what they spell is text, not a tag."""
    return html.unescape(_TAG.sub("", markup)).strip()


def country_code(value: str) -> str:
    """ISO 3166 code in lower case; "" stays "". Raises UserError for anything else."""
    code = value.lower()
    if code and not _COUNTRY.fullmatch(code):
        raise UserError(f"country is a code of two letters such as de, not {value!r}.")
    return code


def language_code(value: str) -> str:
    """Language tag in lower case, such as "de" or "zh-tw"; "" stays "". Raises UserError for anything else."""
    tag = value.lower()
    if tag and not _LANGUAGE.fullmatch(tag):
        raise UserError(f"language is a tag such as de or zh-tw, not {value!r}.")
    return tag


def given(**fields: str) -> dict[str, str]:
    """Those that say something: a parameter that is left open is not sent."""
    return {name: value for name, value in fields.items() if value}
