"""Thumbnails that a search engine names by address, fetched: bounded, guarded, and never in the way of the hits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from actors.search.fetch.reader import DirectReader
from actors.search.seams import ImageHit, ProviderError

WITHIN_S = 8.0  # seconds for all thumbnails of one search
MAX_BYTES = 512 << 10  # of one; search engines make them small
MAX_PIXELS = 1 << 20


class Thumbnails:
    """For one event loop. A search engine shows these pictures to whoever asks it, so no site's robots.txt is asked."""

    def __init__(self, reader: DirectReader | None = None) -> None:
        self._reader = reader or DirectReader(
            robots=False, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, deadline=WITHIN_S, max_body_bytes=MAX_BYTES
        )

    async def fetched(self, hits: Sequence[ImageHit]) -> list[ImageHit]:
        """The hits in their order, with the thumbnails that could be had within `WITHIN_S` seconds."""
        tasks = {
            i: asyncio.create_task(self._one(hit.thumbnail_url))
            for i, hit in enumerate(hits)
            if hit.thumbnail is None and hit.thumbnail_url
        }
        if not tasks:
            return list(hits)
        try:
            await asyncio.wait(tasks.values(), timeout=WITHIN_S)
        finally:
            for task in tasks.values():
                task.cancel()
        found = {i: task.result() for i, task in tasks.items() if task.done() and not task.cancelled()}
        return [replace(hit, thumbnail=found.get(i, hit.thumbnail)) for i, hit in enumerate(hits)]

    async def close(self) -> None:
        await self._reader.close()

    async def _one(self, url: str) -> bytes | None:
        try:
            return await self._reader.fetch_image(url)
        except ProviderError:
            return None  # the hit is worth its text without a picture
