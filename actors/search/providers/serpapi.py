"""SerpApi: Google's results for text, and Google Lens for pictures, which are uploaded.

The key is a parameter of the address, so no address may ever be shown. Finding nothing is a success with an `error`
in it; 429 is an hourly cap or an account without searches. Within an hour, byte-identical parameters are answered
from SerpApi's cache, free of charge.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp

from actors.search.pictures import UnreadablePicture
from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.shapes import country_code, given, hits, language_code, listed, mapping, text, web_url
from actors.search.providers.shrink import within
from actors.search.seams import ErrorKind, ImageHit, ImageQuery, TextHit, TextQuery
from cluster.errors import UserError

BASE_URL = "https://serpapi.com"
KEY_ENV = "SERPAPI_API_KEY"
MAX_UPLOAD = 500_000  # bytes
LENS_TYPES = ("all", "visual_matches", "exact_matches", "products")
_NOTHING = re.compile(r"hasn.t returned any results", re.IGNORECASE)
_SPENT = re.compile(r"run out of searches", re.IGNORECASE)
_BAD_KEY = re.compile(r"invalid api key", re.IGNORECASE)


class SerpApiSearch:
    """Google's organic results, one page of about ten rows."""

    def __init__(
        self,
        *,
        country: str = "",  # ISO code; Google's own choice when empty
        language: str = "",  # Google's own choice when empty
        safe: bool = True,
        no_cache: bool = False,  # True pays for every call and is never answered from SerpApi's cache
        key_env: str = KEY_ENV,
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds
    ) -> None:
        self._fixed = {"engine": "google", **_common(language, safe, no_cache), **given(gl=country_code(country))}
        self._api = JsonApi("SerpApi", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def search(self, query: TextQuery) -> list[TextHit]:
        params = {**self._fixed, "q": query.text, "api_key": self._api.key()}
        reply = await self._api.send("GET", "/search.json", params=params)
        return hits(self._api, _rows(self._api, reply, "organic_results"), query.k, _page)

    async def close(self) -> None:
        await self._api.close()


class SerpApiLens:
    """Google Lens. Two requests a search: the upload, which costs nothing, and the search for what was uploaded."""

    def __init__(
        self,
        *,
        kind: str = "all",  # one of LENS_TYPES
        country: str = "",
        language: str = "",
        safe: bool = True,
        key_env: str = KEY_ENV,
        base_url: str = BASE_URL,
        timeout: float = 30.0,  # seconds, for each of the two requests
    ) -> None:
        if kind not in LENS_TYPES:
            raise UserError(f"SerpApi Lens: kind is one of {', '.join(LENS_TYPES)}, not {kind!r}.")
        self._list = "exact_matches" if kind == "exact_matches" else "visual_matches"
        self._fixed = {
            "engine": "google_lens",
            "type": kind,
            **_common(language, safe, no_cache=False),
            **given(country=country_code(country)),  # Lens spells it so, and not gl
        }
        self._api = JsonApi("SerpApi Lens", base_url, _complaint, key_env=key_env, timeout=timeout)

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        params = {**self._fixed, "image_id": await self._uploaded(image.image), "api_key": self._api.key()}
        reply = await self._api.send("GET", "/search.json", params=params)
        return hits(self._api, _rows(self._api, reply, self._list), image.k, _match)

    async def close(self) -> None:
        await self._api.close()

    async def _uploaded(self, image: bytes) -> str:
        """The id under which SerpApi knows the picture for ten minutes."""
        key = self._api.key()
        try:
            data, media_type = await asyncio.to_thread(within, image, MAX_UPLOAD)
        except UnreadablePicture as error:
            raise self._api.error(ErrorKind.BAD_REQUEST, f"was not asked: {error}") from error
        form = aiohttp.FormData()
        form.add_field("image", data, content_type=media_type, filename="image." + media_type.partition("/")[2])
        form.add_field("api_key", key)
        reply = await self._api.send("POST", "/image", form=form)
        image_id = text(reply.body.get("image_id"))
        if not image_id:
            raise self._api.error(ErrorKind.SCHEMA, "took a picture and gave no image_id")
        return image_id


def _common(language: str, safe: bool, no_cache: bool) -> dict[str, str]:
    return {
        "output": "json",
        "safe": "active" if safe else "off",
        **given(hl=language_code(language), no_cache="true" if no_cache else ""),
    }


def _complaint(reply: Reply) -> Complaint | None:
    said = text(reply.body.get("error"))
    status = text(mapping(reply.body.get("search_metadata")).get("status"))
    if _SPENT.search(said):
        return Complaint(said, ErrorKind.NO_CREDIT)
    if _BAD_KEY.search(said):
        return Complaint(said, ErrorKind.BAD_KEY)
    if reply.status >= 300:
        return Complaint(said)
    if status in ("Error", "Processing", "Queued"):
        return Complaint(said or f"the search is {status.lower()}", ErrorKind.TRANSIENT)
    if said and not _NOTHING.search(said):
        return Complaint(said, ErrorKind.SCHEMA)  # a success that complains in words nobody knows
    return None


def _rows(api: JsonApi, reply: Reply, name: str) -> list[Any]:
    """The list, empty where SerpApi says that Google has nothing.

    Without the list and without that word it is an error: Lens is silent so when it could not look at the picture.
    """
    rows = listed(api, reply.body, name)
    if rows is not None:
        return rows
    state = text(mapping(reply.body.get("search_information")).get("organic_results_state"))
    if _NOTHING.search(text(reply.body.get("error"))) or state == "Fully empty":
        return []
    raise api.error(ErrorKind.SCHEMA, f"gave no {name!r} and does not say that nothing was found")


def _page(row: dict[str, Any]) -> TextHit:
    return TextHit(text(row.get("title")), web_url(row.get("link")), text(row.get("snippet")))


def _match(row: dict[str, Any]) -> ImageHit:
    where, thumbnail = web_url(row.get("link")), web_url(row.get("thumbnail"))
    return ImageHit(text(row.get("title")), where, text(row.get("source")), thumbnail_url=thumbnail)
