"""Decoded pictures for the prompts of one engine: fetched and decoded once, kept while there is room.

Always true: what is kept is bounded by its bytes, the least recently used dropped first; siblings that ask for one
picture at once wait for one decoding, and who stops waiting takes it from nobody; a failure is not kept. A store that
fails is the infrastructure's fault; a picture that is missing or does not decode is the data's.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from typing import TYPE_CHECKING

from actors.agent.seams import GenerationFailed, ImageRefused, ImageStore
from actors.agent.trajectory import ImageRef

if TYPE_CHECKING:
    from PIL.Image import Image

_PIXEL_BYTES = 4  # PIL keeps RGB in four bytes


class Pictures:
    """RGB by content. For one event loop."""

    def __init__(self, images: ImageStore, room: int) -> None:
        """`room`: bytes of what is kept; a picture that is larger by itself is decoded for each who asks anew."""
        self._images, self._room = images, room
        self._kept: OrderedDict[str, Image] = OrderedDict()
        self._kept_bytes = 0
        self._coming: dict[str, asyncio.Task[Image]] = {}

    async def get(self, ref: ImageRef) -> Image:
        """Raise `GenerationFailed` when the store fails, `ImageRefused` for bytes that do not decode, and what the
        store raises for a picture that it does not have."""
        found = self._kept.get(ref.sha256)
        if found is not None:
            self._kept.move_to_end(ref.sha256)
            return found
        coming = self._coming.get(ref.sha256)
        if coming is None:
            coming = self._coming[ref.sha256] = asyncio.create_task(self._bring(ref))
            coming.add_done_callback(_look_at_the_error)
        return await asyncio.shield(coming)

    async def _bring(self, ref: ImageRef) -> Image:
        try:
            picture = await asyncio.to_thread(self._load, ref)
        finally:
            del self._coming[ref.sha256]
        self._keep(ref.sha256, picture)
        return picture

    def _load(self, ref: ImageRef) -> Image:
        from PIL import Image

        try:
            data = self._images.get(ref)
        except OSError as error:
            raise GenerationFailed(f"storage does not give image {ref.sha256[:12]}: {error}") from error
        try:
            with Image.open(io.BytesIO(data)) as picture:
                return picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageRefused(f"image {ref.sha256[:12]} does not decode: {error}") from error

    def _keep(self, sha256: str, picture: Image) -> None:
        if _size(picture) > self._room:
            return
        self._kept[sha256] = picture
        self._kept_bytes += _size(picture)
        while self._kept_bytes > self._room:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(picture: Image) -> int:
    return picture.width * picture.height * _PIXEL_BYTES


def _look_at_the_error(task: asyncio.Task[Image]) -> None:
    """Where all who asked have left, asyncio would complain that nobody did."""
    if not task.cancelled():
        task.exception()
