"""Tavily: a search made for agents, whose results carry passages of the pages.

It has statuses of its own for an exhausted plan (432) and an exhausted pay-as-you-go limit (433), no confirmed
parameter for safe search, and none for the language.
"""

from __future__ import annotations

import re
from typing import Any

from actors.search import metering
from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.shapes import given, hits, listed, mapping, number, text, web_url
from actors.search.seams import ErrorKind, TextHit, TextQuery
from cluster.errors import UserError

BASE_URL = "https://api.tavily.com"
MAX_RESULTS = 20
DEPTHS = ("basic", "advanced", "fast", "ultra-fast")
TOPICS = ("general", "news", "finance")
_COUNTRY = re.compile(r"[a-z][a-z .,'()&-]{2,}")
_SPENT = re.compile(r"usage limit|pay-as-you-go", re.IGNORECASE)


class TavilySearch:
    def __init__(
        self,
        *,
        depth: str = "basic",  # one of DEPTHS; advanced takes 2 credits, the others 1
        topic: str = "general",  # one of TOPICS
        country: str = "",  # English name in lower case ("united kingdom"), for topic general
        usd_per_credit: float = 0.0,  # 0.008 pay-as-you-go in 2026
        key_env: str = "TAVILY_API_KEY",
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds
    ) -> None:
        if depth not in DEPTHS or topic not in TOPICS:
            known = f"depth is one of {', '.join(DEPTHS)} and topic one of {', '.join(TOPICS)}"
            raise UserError(f"Tavily: {known}, not {depth!r} and {topic!r}.")
        if country and not _COUNTRY.fullmatch(country):
            raise UserError(f"Tavily takes a country's English name in lower case, such as germany, not {country!r}.")
        if country and topic != "general":
            raise UserError(f"Tavily takes a country with topic general alone, not with {topic}.")
        self._fixed = {"search_depth": depth, "topic": topic, "include_usage": True, **given(country=country)}
        self._usd_per_credit = usd_per_credit
        self._api = JsonApi("Tavily", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def search(self, query: TextQuery) -> list[TextHit]:
        body = {**self._fixed, "query": query.text, "max_results": max(1, min(query.k, MAX_RESULTS))}
        headers = {"Authorization": f"Bearer {self._api.key()}"}
        reply = await self._api.send("POST", "/search", headers=headers, json=body)
        credits = number(mapping(reply.body.get("usage")).get("credits"))
        metering.spent(usd=max(0.0, credits) * self._usd_per_credit)
        rows = listed(self._api, reply.body, "results")
        if rows is None:
            raise self._api.error(ErrorKind.SCHEMA, "gave no 'results'")
        return hits(self._api, rows, query.k, _page)

    async def close(self) -> None:
        await self._api.close()


def _complaint(reply: Reply) -> Complaint | None:
    detail = reply.body.get("detail")
    said = text(mapping(detail).get("error")) or text(detail)
    if reply.status < 300:
        return Complaint(said, ErrorKind.SCHEMA) if detail else None
    if reply.status in (432, 433) or _SPENT.search(said):
        return Complaint(said, ErrorKind.NO_CREDIT)
    return Complaint(said)


def _page(row: dict[str, Any]) -> TextHit:
    return TextHit(text(row.get("title")), web_url(row.get("url")), text(row.get("content")), number(row.get("score")))
