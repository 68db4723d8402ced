"""A picture within a provider's limit on bytes. Pure and slow: for a thread."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageOps

from actors.search.pictures import UnreadablePicture

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
QUALITY = 90  # of a JPEG; smaller pictures serve a search better than coarser ones


def media_type(data: bytes) -> str:
    """Of an encoded picture; "" for what is none of MEDIA_TYPES. Reads its head alone."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return MEDIA_TYPES.get(picture.format or "", "")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""


def within(data: bytes, max_bytes: int) -> tuple[bytes, str]:
    """The picture in at most `max_bytes`, and its media type. Bytes that already fit stay as they are.

    Others become a JPEG, upright, of the same shape and as large as the limit allows, roughly. Raises
    UnreadablePicture, also where no picture fits.
    """
    kept = media_type(data)
    if kept and len(data) <= max_bytes:
        return data, kept
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"not a readable picture: {error}") from error
    while True:
        encoded = io.BytesIO()
        picture.save(encoded, format="JPEG", quality=QUALITY)
        size = encoded.tell()
        if size <= max_bytes:
            return encoded.getvalue(), MEDIA_TYPES["JPEG"]
        if picture.size == (1, 1):
            raise UnreadablePicture(f"no picture fits into {max_bytes} bytes")
        scale = 0.9 * math.sqrt(max_bytes / size)
        picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
