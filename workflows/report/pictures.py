"""Pictures of a run as `data:` addresses, each once, within a budget. Small ones stay as they are, byte by byte.

What is in a blob store may come from the web: only bytes that Pillow can read as one of a few formats become an
address, and never as SVG, which could hold a script.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from actors.agent.seams import ImageMissing, ImageStore
from actors.agent.trajectory import ImageRef
from actors.model.images import FORMATS, measure

KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
SMALL_BYTES = 48 << 10  # up to here nothing is encoded anew
BUDGET_BYTES = 5 << 20  # of all pictures together, as text in the page
EDGE, THUMBNAIL_EDGE = 640, 160  # pixels of the longer side of those that are encoded anew
QUALITY = 80


@dataclass
class Album:
    """Pictures by sha256: {"src", "width", "height"}, sizes of the original. `missing` and `left_out` are counted."""

    budget: int = BUDGET_BYTES
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)  # for lack of room

    def add(self, ref: ImageRef, store: ImageStore, edge: int = EDGE) -> bool:
        """Whether the page now has it."""
        if ref.sha256 in self.pictures or ref.sha256 in self.missing:
            return ref.sha256 in self.pictures
        try:
            src = address(store.get(ref), edge)
        except (ImageMissing, OSError, ValueError):
            self.missing.add(ref.sha256)
            return False
        if len(src) > self.budget:
            self.left_out.add(ref.sha256)
            return False
        self.budget -= len(src)
        self.left_out.discard(ref.sha256)
        self.pictures[ref.sha256] = {"src": src, "width": ref.width, "height": ref.height}
        return True


def address(data: bytes, edge: int = EDGE) -> str:
    """A `data:` address. Raise `ImageRefused` (a ValueError) for what is no picture, or too large a one."""
    measure(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        kind = picture.format or ""
        if kind not in KINDS or len(data) > SMALL_BYTES:
            picture.thumbnail((edge, edge))
            sink = io.BytesIO()
            picture.convert("RGB").save(sink, "JPEG", quality=QUALITY)
            data, kind = sink.getvalue(), "JPEG"
    return f"data:{KINDS[kind]};base64,{base64.b64encode(data).decode()}"
