"""Pages and thumbnails of the open web, read directly through the guarded fetcher."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Awaitable, Callable
from typing import Any

from actors.search.evidence import bounded
from actors.search.fetch.extraction import Extractors
from actors.search.fetch.fetcher import Fetched, GuardedFetcher
from actors.search.fetch.pixels import TYPES as IMAGE_TYPES
from actors.search.fetch.pixels import RefusedPicture, check_picture
from actors.search.fetch.settings import FetchSettings
from actors.search.fetch.urls import refused
from actors.search.seams import Page

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain", "text/markdown")
_OTHER_THINGS = (b"%PDF-", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\x03\x04", b"\x7fELF", b"\x1f\x8b")
_SINGLE_BYTE = {f"iso8859-{n}" for n in range(1, 17)} | {f"cp{n}" for n in range(1250, 1259)}
_CHARSETS = _SINGLE_BYTE | {
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "ascii"),
    *("shift_jis", "cp932", "euc_jp", "iso2022_jp", "gb2312", "gbk", "gb18030", "big5", "big5hkscs", "euc_kr", "cp949"),
    *("koi8-r", "koi8-u", "mac-roman", "tis-620", "cp874", "cp866", "cp437", "cp850"),
}  # spelt as codecs.lookup spells them; others (punycode, unicode_escape) are not charsets of the web

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)

Extract = Callable[[str], Awaitable[tuple[str, str]]]


class DirectReader:
    """A `PageReader`. Its arguments are the fields of FetchSettings; raises TypeError and UserError for others."""

    def __init__(
        self, *, fetcher: GuardedFetcher | None = None, extract: Extract | None = None, **settings: Any
    ) -> None:
        """`fetcher` and `extract` (HTML to title and text) are for code and tests."""
        self._settings = FetchSettings(**settings)
        self._fetcher = fetcher if fetcher is not None else GuardedFetcher(self._settings)
        self._children: Extractors | None = None
        self._given = extract

    async def read(self, url: str) -> Page:
        """The page behind `url`: HTML by its main text, plain text as it is, at most `max_chars` characters of
        it; `Page.url` is where it was found in the end. Raises ProviderError, BAD_REQUEST for other types."""
        fetched = await self._fetcher.get(url, accept=(*HTML_TYPES, *TEXT_TYPES))
        if fetched.body.startswith(_OTHER_THINGS):
            raise refused(f"a body that is not of its type, {fetched.content_type}")
        title, text = await self._title_and_text(fetched)
        return Page(fetched.final_url, title, bounded(text, self._settings.max_chars), fetched.fetched_at)

    async def fetch_image(self, url: str) -> bytes:
        """Encoded bytes of the picture behind `url`, bounded in bytes and pixels. Raises ProviderError."""
        fetched = await self._fetcher.get(url, accept=IMAGE_TYPES)
        try:
            await asyncio.to_thread(check_picture, fetched.body, self._settings.max_pixels)
        except RefusedPicture as error:
            raise refused(str(error)) from error
        return fetched.body

    async def close(self) -> None:
        await self._fetcher.close()
        if self._children is not None:
            await self._children.close()

    async def _title_and_text(self, fetched: Fetched) -> tuple[str, str]:
        if fetched.content_type in TEXT_TYPES:
            return "", decoded(fetched.body, fetched.charset)
        html = decoded(fetched.body[: self._settings.max_html_bytes], fetched.charset or _declared(fetched.body))
        return await self._extract()(html)

    def _extract(self) -> Extract:
        if self._given is not None:
            return self._given
        if self._children is None:
            self._children = Extractors(self._settings.extraction_processes, self._settings.extraction_deadline)
        return self._children


def decoded(body: bytes, charset: str) -> str:
    """`body` as text, by its byte order mark, else by `charset`, else as UTF-8; what does not decode is replaced.

    Raises ProviderError(BAD_REQUEST) for bytes that are no text of that charset.
    """
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, errors="replace")
    try:
        name = codecs.lookup(charset).name if charset.isascii() and len(charset) < 40 else ""
    except (LookupError, ValueError):
        name = ""
    text = body.decode(name if name in _CHARSETS else "utf-8", errors="replace")
    if "\x00" in text[:4096]:
        raise refused("a body that is not text")
    return text


def _declared(body: bytes) -> str:
    """The charset that a page's own head names; "" where it names none."""
    found = _META_CHARSET.search(body[:4096])
    return found[1].decode("ascii") if found else ""
