"""Brave's own index of the web.

A wrong key is a 422 like a wrong query, a rate and an exhausted quota are both 429: the error's code tells them
apart, and it comes in two forms. How long to wait is in headers with one entry per window of the limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.shapes import (
    country_code,
    given,
    hits,
    language_code,
    listed,
    mapping,
    plain,
    text,
    web_url,
)
from actors.search.seams import ErrorKind, TextHit, TextQuery

BASE_URL = "https://api.search.brave.com"
MAX_COUNT, MAX_CHARS, MAX_WORDS = 20, 400, 50
LONG_WINDOW = 3600.0  # seconds; an exhausted window that is open longer than this is a quota and not a rate
_CODES = {
    "SUBSCRIPTION_TOKEN_INVALID": ErrorKind.BAD_KEY,
    "SUBSCRIPTION_NOT_FOUND": ErrorKind.BAD_KEY,
    "QUOTA_LIMITED": ErrorKind.NO_CREDIT,
    "RATE_LIMITED": ErrorKind.RATE,
}
_LANGUAGES = {"ja": "jp", "zh": "zh-hans", "zh-cn": "zh-hans", "zh-tw": "zh-hant", "zh-hk": "zh-hant", "pt": "pt-br"}


class BraveSearch:
    """Web results. Brave takes queries of at most 400 characters and 50 words; longer ones are refused unasked."""

    def __init__(
        self,
        *,
        country: str = "",  # ISO code; the United States when empty
        language: str = "",  # of the pages; English when empty
        safe: bool = True,
        extra_snippets: bool = False,  # up to five more pieces of each page, where the plan has them
        key_env: str = "BRAVE_API_KEY",
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds
    ) -> None:
        language = language_code(language)
        self._fixed = {
            "result_filter": "web",
            "safesearch": "strict" if safe else "off",
            "text_decorations": "false",
            **given(
                country=country_code(country).upper(),
                search_lang=_LANGUAGES.get(language, language),
                extra_snippets="true" if extra_snippets else "",
            ),
        }
        self._api = JsonApi("Brave", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def search(self, query: TextQuery) -> list[TextHit]:
        if len(query.text) > MAX_CHARS or len(query.text.split()) > MAX_WORDS:
            limit = f"takes queries of at most {MAX_CHARS} characters and {MAX_WORDS} words"
            raise self._api.error(ErrorKind.BAD_REQUEST, limit)
        params = {**self._fixed, "q": query.text, "count": str(max(1, min(query.k, MAX_COUNT)))}
        headers = {"X-Subscription-Token": self._api.key()}
        reply = await self._api.send("GET", "/res/v1/web/search", headers=headers, params=params)
        return hits(self._api, _rows(self._api, reply), query.k, _page)

    async def close(self) -> None:
        await self._api.close()


def _complaint(reply: Reply) -> Complaint | None:
    body = reply.body
    listed_errors = body.get("errors")
    errors = [body.get("error"), *(listed_errors if isinstance(listed_errors, list) else [])]
    errors = [error for error in errors if isinstance(error, dict)]
    if reply.status < 300 and not errors and body.get("type") != "ErrorResponse":
        return None
    wait = wait_for_windows(reply.headers)
    for error in errors:
        code, said = text(error.get("code")), text(error.get("detail"))
        if code in _CODES:
            return Complaint(f"{code}: {said}", _CODES[code], wait)
        if code == "VALIDATION":
            return Complaint(f"{code}: {said}", _blamed(error))
    if reply.status == 429 and wait is not None and wait > LONG_WINDOW:
        return Complaint("the quota of a long window is used up", ErrorKind.NO_CREDIT)
    said = " ".join(text(error.get("code")) + " " + text(error.get("detail")) for error in errors)
    return Complaint(said, ErrorKind.SCHEMA if reply.status < 300 else None, wait)


def _blamed(error: dict[str, Any]) -> ErrorKind:
    """Whose fault a VALIDATION is: the key's header, the query's, or the adapter's with another parameter."""
    wrong = mapping(error.get("meta")).get("errors")
    places = [mapping(one).get("loc") for one in wrong] if isinstance(wrong, list) else []
    named = {place[-1] for place in places if isinstance(place, list) and place and isinstance(place[-1], str)}
    if "x-subscription-token" in {name.lower() for name in named}:
        return ErrorKind.BAD_KEY
    return ErrorKind.BAD_REQUEST if not named or "q" in named else ErrorKind.SCHEMA


def wait_for_windows(headers: Mapping[str, str]) -> float | None:
    """Seconds until every exhausted window of the rate limit is open again; None where none is exhausted.

    `X-RateLimit-Remaining: 0, 14999` and `X-RateLimit-Reset: 1, 1419704` have one entry per window.
    """
    remaining = _entries(headers.get("X-RateLimit-Remaining", ""))
    resets = _entries(headers.get("X-RateLimit-Reset", ""))
    waits = [reset for left, reset in zip(remaining, resets, strict=False) if left == 0 and reset is not None]
    return max(waits, default=None)


def _entries(header: str) -> list[int | None]:
    return [int(entry) if re.fullmatch(r"\s*[0-9]{1,12}\s*", entry) else None for entry in header.split(",")]


def _rows(api: JsonApi, reply: Reply) -> list[Any]:
    """The list of web results. No `web` at all means nothing was found, if the rest is Brave's."""
    if reply.body.get("type") != "search" and not mapping(reply.body.get("query")):
        raise api.error(ErrorKind.SCHEMA, "gave an answer that is not of type 'search'")
    web = reply.body.get("web")
    if not web:
        return []
    rows = listed(api, mapping(web), "results")
    if rows is None:
        raise api.error(ErrorKind.SCHEMA, "gave 'web' without 'results'")
    return rows


def _page(row: dict[str, Any]) -> TextHit:
    more = row.get("extra_snippets")
    snippets = [row.get("description"), *(more if isinstance(more, list) else [])]
    said = "\n".join(filter(None, (plain(text(snippet)) for snippet in snippets)))
    return TextHit(plain(text(row.get("title"))), web_url(row.get("url")), said)
