"""Serper: Google's results for text, and Google Lens for pictures that have an address.

Serper documents neither error codes nor rate headers: its `message` is what there is to read. It has no parameter
for safe search. Only successes are charged, and `credits` in a reply is the price of that call.
"""

from __future__ import annotations

from typing import Any

from actors.search import metering
from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.published import PublishedImages, Publisher
from actors.search.providers.shapes import (
    country_code,
    given,
    hits,
    language_code,
    listed,
    mapping,
    number,
    text,
    web_url,
)
from actors.search.seams import ErrorKind, ImageHit, ImageQuery, TextHit, TextQuery

BASE_URL = "https://google.serper.dev"
KEY_ENV = "SERPER_API_KEY"
LENS_LISTS = ("organic", "visual_matches", "visualMatches")  # clients disagree; most read the first


class SerperSearch:
    """Google's organic results, one page: at most ten rows, whatever is asked for, at the price of one."""

    def __init__(
        self,
        *,
        country: str = "",  # ISO code; Google's own choice when empty
        language: str = "",  # of the results' page; Google's own choice when empty
        usd_per_credit: float = 0.0,  # 0.001 on the smallest plan in August 2026; a search takes 1 credit
        key_env: str = KEY_ENV,
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds
    ) -> None:
        self._locale = given(gl=country_code(country), hl=language_code(language))
        self._usd_per_credit = usd_per_credit
        self._api = JsonApi("Serper", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def search(self, query: TextQuery) -> list[TextHit]:
        body = {"q": query.text, "num": 10, **self._locale}
        reply = await self._api.send("POST", "/search", headers={"X-API-KEY": self._api.key()}, json=body)
        _paid(reply, self._usd_per_credit)
        return hits(self._api, _rows(self._api, reply, "organic"), query.k, _page)

    async def close(self) -> None:
        await self._api.close()


class SerperLens:
    """Google Lens for a picture, which is put into an object store first: Serper takes nothing but public addresses.

    Raises UserError when `store` is not one that gives signed addresses. `published` takes its place in code.
    """

    def __init__(
        self,
        *,
        store: str = "",  # s3://bucket/prefix, reachable from the internet
        url_seconds: int = 600,  # how long a picture's address is good
        country: str = "",
        language: str = "",
        usd_per_credit: float = 0.0,  # 0.001 on the smallest plan in August 2026; Lens takes 3 credits
        key_env: str = KEY_ENV,
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds
        published: Publisher | None = None,
    ) -> None:
        self._published = published or PublishedImages(store, url_seconds)
        self._locale = given(gl=country_code(country), hl=language_code(language))
        self._usd_per_credit = usd_per_credit
        self._api = JsonApi("Serper Lens", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        key = self._api.key()  # before the upload: without a key it would be for nothing
        url = await self._published.publish(image.image)
        body = {"url": url, **self._locale}
        reply = await self._api.send("POST", "/lens", headers={"X-API-KEY": key}, json=body, hidden=[url])
        _paid(reply, self._usd_per_credit)
        return hits(self._api, _rows(self._api, reply, *LENS_LISTS), image.k, _match)

    async def close(self) -> None:
        await self._api.close()


def _complaint(reply: Reply) -> Complaint | None:
    if reply.status < 300:
        return None
    message = text(reply.body.get("message"))
    said = message.lower()
    if "credit" in said:  # comes with 400, and by one account with 429
        return Complaint(message, ErrorKind.NO_CREDIT)
    if reply.status == 403 and "plan" in said:
        return Complaint(message, ErrorKind.NO_CREDIT)  # the key is right, what it paid for is less than this
    return Complaint(message)


def _rows(api: JsonApi, reply: Reply, *names: str) -> list[Any]:
    """The first of the lists that is there. None at all means nothing was found, if the rest is Serper's."""
    for name in names:
        rows = listed(api, reply.body, name)
        if rows is not None:
            return rows
    if not mapping(reply.body.get("searchParameters")):
        raise api.error(ErrorKind.SCHEMA, f"gave neither {names[0]!r} nor 'searchParameters'")
    return []


def _paid(reply: Reply, usd_per_credit: float) -> None:
    metering.spent(usd=max(0.0, number(reply.body.get("credits"))) * usd_per_credit)


def _page(row: dict[str, Any]) -> TextHit:
    return TextHit(text(row.get("title")), web_url(row.get("link")), text(row.get("snippet")))


def _match(row: dict[str, Any]) -> ImageHit:
    said = text(row.get("snippet")) or text(row.get("source"))
    where, thumbnail = web_url(row.get("link")), web_url(row.get("thumbnailUrl"))
    return ImageHit(text(row.get("title")), where, said, thumbnail_url=thumbnail)
