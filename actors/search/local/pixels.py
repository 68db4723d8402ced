"""Pixels as the local engines look at them: decoded within bounds, made small, and as keys of a cache.

Two keys of a picture: the sha256 of its pixels, the same however they were encoded without loss, and dHash, 64 bits
of which few change when a picture is scaled or compressed.
"""

from __future__ import annotations

import hashlib
import io
import struct

import numpy as np
from PIL import Image

from actors.model.images import FORMATS, MAX_BYTES, MAX_PIXELS
from actors.search.pictures import UnreadablePicture

# what decoders of torn and hostile files have been seen to raise
_DECODING = (OSError, SyntaxError, ValueError, EOFError, struct.error, ArithmeticError, LookupError, TypeError)
FLAT_BITS = 8  # a dHash with fewer bits set, or fewer unset, says too little about a picture to be compared


def decoded(data: bytes) -> Image.Image:
    """The picture as RGB. Raises UnreadablePicture for what is torn, of an unknown kind, or too large."""
    if len(data) > MAX_BYTES:
        raise UnreadablePicture(f"a picture of {len(data)} bytes is over the limit of {MAX_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UnreadablePicture(f"a picture of {picture.width} x {picture.height} pixels is too large")
            return picture.convert("RGB")
    except UnreadablePicture:
        raise
    except (*_DECODING, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"not a readable picture: {error}") from error


def thumbnail(picture: Image.Image, side: int) -> bytes:
    """JPEG with neither side longer than `side` pixels; a smaller picture keeps its size."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, format="JPEG", quality=85)
    return encoded.getvalue()


def pixel_sha256(picture: Image.Image) -> bytes:
    """32 bytes; of the size and the RGB values."""
    picture = picture.convert("RGB")
    return hashlib.sha256(b"%d x %d\0" % picture.size + picture.tobytes()).digest()


def dhash(picture: Image.Image) -> int:
    """64 bits: of 8 rows of 9 grey values, whether each is brighter than its right neighbour."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = grey[:, :-1] > grey[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def comparable(value: int) -> bool:
    """Whether a dHash has structure enough to be compared with others."""
    return FLAT_BITS <= value.bit_count() <= 64 - FLAT_BITS
