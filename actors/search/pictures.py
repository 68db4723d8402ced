"""Pixels of a crop. Decoding what a stranger sent is where pictures go wrong, so it happens here alone."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

from actors.search.crop import Box


class UnreadablePicture(ValueError):
    """Bytes that do not decode to a picture of an acceptable size."""


def check(data: bytes) -> None:
    """Decode the whole picture once. Raises UnreadablePicture for what is torn, false or a bomb."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"not a readable picture: {error}") from error


def cut(data: bytes, box: Box) -> bytes:
    """The crop as PNG: lossless, and the same bytes for the same pixels, so its hash is a cache key."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            crop = picture.crop(box).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"not a readable picture: {error}") from error
    encoded = io.BytesIO()
    crop.save(encoded, format="PNG")
    return encoded.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
