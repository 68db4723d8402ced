"""SearXNG: a metasearch engine that one hosts oneself, without keys.

Its JSON is off by default and then answers 403. When the engines behind it fail, it answers with no results and their
names: an outage, not an empty answer.
"""

from __future__ import annotations

from typing import Any

from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.shapes import country_code, given, hits, language_code, listed, number, text, web_url
from actors.search.seams import ErrorKind, TextHit, TextQuery
from cluster.errors import UserError


class SearxngSearch:
    """SearXNG has no parameter for the number of results: what it sends beyond `k` is cut off here."""

    def __init__(
        self,
        *,
        base_url: str,  # of the instance, for example http://searxng:8080
        categories: str = "general",  # comma list
        engines: str = "",  # comma list; those of the categories when empty
        country: str = "",  # ISO code; part of the language in SearXNG, so it needs one
        language: str = "",  # the instance's default when empty
        safe: bool = True,
        timeout: float = 30.0,  # seconds
    ) -> None:
        language, country = language_code(language), country_code(country)
        if country and (not language or "-" in language):
            raise UserError("SearXNG knows a country as part of the language: give language: de with country: at.")
        locale = "-".join(filter(None, (language, country.upper())))
        self._fixed = {
            "format": "json",
            "safesearch": "2" if safe else "0",
            **given(categories=categories, engines=engines, language=locale),
        }
        self._api = JsonApi("SearXNG", base_url, _complaint, timeout=timeout)

    async def search(self, query: TextQuery) -> list[TextHit]:
        reply = await self._api.send("GET", "/search", params={**self._fixed, "q": query.text})
        rows = listed(self._api, reply.body, "results")
        if rows is None:
            raise self._api.error(ErrorKind.SCHEMA, "gave no 'results'")
        failed = _unresponsive(reply.body.get("unresponsive_engines"))
        if not rows and failed:
            raise self._api.error(ErrorKind.TRANSIENT, f"got nothing from its engines: {failed}")
        return hits(self._api, rows, query.k, _page)

    async def close(self) -> None:
        await self._api.close()


def _complaint(reply: Reply) -> Complaint | None:
    if reply.status == 403:
        return Complaint("it does not serve JSON (search.formats in its settings), or takes this for a bot")
    return None if reply.status < 300 else Complaint(text(reply.body.get("error")))


def _unresponsive(engines: object) -> str:
    """Names and reasons of the engines that failed, for people; "" when none did."""
    if not isinstance(engines, list):
        return ""
    told = [" ".join(map(str, engine)) if isinstance(engine, list) else str(engine) for engine in engines]
    return ", ".join(told)


def _page(row: dict[str, Any]) -> TextHit:
    return TextHit(text(row.get("title")), web_url(row.get("url")), text(row.get("content")), number(row.get("score")))
