"""Pictures that a search found, small enough to travel in a step of a stream.

Always true: what is shown was decoded and encoded anew here, so that it is a picture and nothing else; it is at most
`SIDE` pixels wide and high and at most `MAX_CHARS` characters as a data URL; what cannot be shown is left out.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable

from actors.agent.seams import ImageMissing, ImageRefused, Toolbox
from actors.agent.trajectory import ImageRef, ToolRequest, ToolResult
from actors.model.images import FORMATS, measure

SIDE = 256  # pixels
MAX_CHARS = 48 << 10  # of one data URL
_QUALITIES = (80, 50, 20)  # of a JPEG; pure noise of 256 x 256 pixels fits at the last
_HEAD = "data:image/jpeg;base64,"


class ShowingToolbox:
    """A Toolbox that makes thumbnails of what another one finds: `documents`, data URLs by the pictures' SHA-256.

    `bytes_of`: as `ImageStore.get`.
    """

    def __init__(self, toolbox: Toolbox, bytes_of: Callable[[ImageRef], bytes]) -> None:
        self._toolbox, self._bytes_of = toolbox, bytes_of
        self.documents: dict[str, str] = {}

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """As `Toolbox.call`; returns when the thumbnails are there."""
        result = await self._toolbox.call(request, deadline=deadline)
        new = [ref for ref in dict.fromkeys(result.images) if ref.sha256 not in self.documents]
        if new:
            self.documents |= await asyncio.to_thread(self._made, new)
        return result

    def _made(self, refs: list[ImageRef]) -> dict[str, str]:
        made = ((ref.sha256, self._document(ref)) for ref in refs)
        return {sha256: document for sha256, document in made if document is not None}

    def _document(self, ref: ImageRef) -> str | None:
        try:
            return thumbnail_document(self._bytes_of(ref))
        except ImageMissing:
            return None


def thumbnail_document(data: bytes) -> str | None:
    """A data URL of the picture as a small JPEG, upright, on white; None for what is no acceptable picture.

    Slow: for a thread. What is too large to decode is refused before anything is decoded.
    """
    from PIL import Image, ImageOps

    try:
        measure(data, whole=False)
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            opened.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded no larger than it takes
            small = ImageOps.exif_transpose(opened).convert("RGBA")
        small.thumbnail((SIDE, SIDE))
    except (ImageRefused, OSError, SyntaxError, ValueError):
        return None
    shown = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    for quality in _QUALITIES:
        encoded = io.BytesIO()
        shown.save(encoded, format="JPEG", quality=quality)
        document = _HEAD + base64.b64encode(encoded.getvalue()).decode("ascii")
        if len(document) <= MAX_CHARS:
            return document
    return None
