"""Jina Reader: the main text of a page, fetched by Jina.

A 200 of the reader says nothing about the page: the page's own status, a warning or an empty text do.

Always true: Jina is told no address that the guarded fetcher would refuse by its spelling, and no page is handed on
that Jina found at one. Addresses of the open web are disclosed to Jina; whoever calls keeps signed ones away from here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.search import metering
from actors.search.fetch.admission import Admission
from actors.search.providers.http import Complaint, JsonApi, Reply, kind_of
from actors.search.providers.shapes import country_code, given, language_code, mapping, number, text, web_url
from actors.search.seams import ErrorKind, Page, ProviderError
from cluster.errors import UserError

BASE_URL = "https://r.jina.ai"
_PAGE_STATUS = re.compile(r"returned error (\d{3})")
_CODES = {  # Jina's own five digits; others count by the three of HTTP that they begin with
    40903: ErrorKind.TRANSIENT,  # somebody else is reading this page just now
    40904: ErrorKind.BAD_REQUEST,  # the page is longer than the budget
}
_BY_STATUS = {409: ErrorKind.TRANSIENT, 451: ErrorKind.BAD_REQUEST}


class JinaReader:
    """Billed by tokens of the text, which the reply tells."""

    def __init__(
        self,
        *,
        country: str = "",  # ISO code; goes with a language
        language: str = "",  # the browser's; the reader's own when empty
        page_timeout: int = 10,  # seconds that the reader may take for the page, 1 to 180
        max_tokens: int = 0,  # longer texts are cut off; 0: none is
        usd_per_million_tokens: float = 0.0,
        allow: Sequence[str] = (),  # domains, as of the direct reader (actors/search/fetch/settings.py)
        deny: Sequence[str] = (),
        deny_presets: Sequence[str] = ("benchmarks", "relays"),
        key_env: str = "JINA_API_KEY",  # "" reads without a key, which is slower and often refused
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds
        wall: Callable[[], float] = time.time,
    ) -> None:
        language, country = language_code(language), country_code(country)
        if country and (not language or "-" in language):
            raise UserError("Jina knows a country as part of the language: give language: de with country: at.")
        if not 1 <= page_timeout <= 180 or max_tokens < 0:
            raise UserError("Jina: page_timeout is 1 to 180 seconds, and max_tokens is not below 0.")
        self._admission = Admission(allow, deny, deny_presets)
        self._headers = {
            "Accept": "application/json",  # with text/plain beside it the answer is not JSON
            "X-Timeout": str(page_timeout),
            "X-Retain-Images": "none",  # addresses of pictures are tokens that say nothing
            **given(
                **{
                    "X-Locale": "-".join(filter(None, (language, country.upper()))),
                    "X-Max-Output-Tokens": str(max_tokens) if max_tokens else "",
                }
            ),
        }
        self._keyed, self._usd_per_token, self._wall = bool(key_env), usd_per_million_tokens / 1e6, wall
        self._api = JsonApi("Jina Reader", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def read(self, url: str) -> Page:
        """Raises ProviderError, as the direct reader does for an address that must not be read: BAD_REQUEST."""
        try:
            asked = str(self._admission.admitted(url))  # what is sent is what was judged
        except ProviderError as error:
            raise ProviderError(error.kind, error.message, sent=False) from error
        key = {"Authorization": f"Bearer {self._api.key()}"} if self._keyed else {}
        reply = await self._api.send("POST", "/", headers={**self._headers, **key}, json={"url": asked})
        data = mapping(reply.body.get("data"))
        tokens = _tokens(reply.body)
        metering.spent(tokens=tokens, usd=tokens * self._usd_per_token)
        if "content" not in data:
            raise self._api.error(ErrorKind.SCHEMA, "gave no 'content'")
        if problem := _page_problem(data):
            raise self._api.error(*problem)
        found = web_url(data.get("url")) or asked
        self._admission.admitted(found)  # it follows redirects
        content = text(data["content"])
        if not content:
            raise self._api.error(ErrorKind.BAD_REQUEST, "found no text on the page")
        return Page(found, text(data.get("title")), content, self._wall())

    async def close(self) -> None:
        await self._api.close()


def _complaint(reply: Reply) -> Complaint | None:
    """`code` is the HTTP status once more, `status` five digits that begin with it."""
    codes = [int(number(reply.body.get(name))) for name in ("status", "code")]
    code = next((code for code in codes if _http_status(code) >= 400), 0)
    if reply.status < 300 and not code:
        return None
    said = text(reply.body.get("readableMessage")) or text(reply.body.get("message"))
    status = _http_status(code) or reply.status
    kind = _CODES.get(code) or _BY_STATUS.get(status) or kind_of(status)
    return Complaint(f"{code or status} {said}", kind)


def _http_status(code: int) -> int:
    return code // 100 if code > 999 else code


def _tokens(body: dict[str, Any]) -> int:
    """Tokens of the answer, told in one of two places."""
    for place in (body.get("data"), body.get("meta")):
        tokens = number(mapping(mapping(place).get("usage")).get("tokens"))
        if tokens > 0:
            return int(tokens)
    return 0


def _page_problem(data: dict[str, Any]) -> tuple[ErrorKind, str] | None:
    """What is wrong with the page, as opposed to the reader. Its rate limit is not the reader's, so never RATE."""
    warning = text(data.get("warning"))
    named = _PAGE_STATUS.search(warning)
    status = int(number(data.get("httpStatus"))) or (int(named[1]) if named else 0)
    if status >= 400:
        passing = status >= 500 or status in (408, 425, 429)
        return ErrorKind.TRANSIENT if passing else ErrorKind.BAD_REQUEST, f"read a page that answers {status}"
    if "captcha" in warning.lower():
        return ErrorKind.BAD_REQUEST, "read a page that asks for a CAPTCHA"
    return None
