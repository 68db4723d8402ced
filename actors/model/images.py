"""Images by content: agent's `ImageStore` over a blob store, with bounds on what is let in."""

from __future__ import annotations

import io
import struct
import warnings

from actors.agent.seams import ImageMissing, ImageRefused
from actors.agent.trajectory import ImageRef
from cluster.blobs import BlobCorrupt, BlobMissing, BlobStore

MAX_BYTES = 20 << 20
MAX_PIXELS = 40_000_000  # a 7,000 x 5,700 photograph; anything above is scaled down by every processor anyway
MAX_ASPECT = 200  # longer side to shorter side; Qwen2-VL's smart_resize refuses more

# what cameras and the web use; the others' decoders are old code, and some start programs (EPS: Ghostscript)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# what their parsers raise on bytes that were tampered with
_TORN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)


class BlobImages:
    """An `agent.seams.ImageStore`. Can be pickled to any process that reaches the blobs."""

    def __init__(self, blobs: BlobStore, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> None:
        self._blobs, self._max_bytes, self._max_pixels = blobs, max_bytes, max_pixels

    def put(self, data: bytes) -> ImageRef:
        """Keep an image. Raise `ImageRefused` for what is none, is broken, or is too large.

        One that lies here already was whole when it came, and is not decoded again.
        """
        known = self._blobs.cached(data)
        width, height = measure(data, self._max_bytes, self._max_pixels, whole=not known)
        return ImageRef(self._blobs.put(data), width, height)

    def get(self, ref: ImageRef) -> bytes:
        """Raise `ImageMissing` when no store holds the bytes, or holds others."""
        try:
            return self._blobs.get(ref.sha256)
        except (BlobMissing, BlobCorrupt) as error:
            raise ImageMissing(f"image {ref.sha256[:12]} cannot be found") from error

    def has(self, ref: ImageRef) -> bool:
        """Whether a store holds something under its name; what is no reference is nowhere."""
        try:
            return ref.sha256 in self._blobs
        except ValueError:
            return False


def measure(
    data: bytes, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, *, whole: bool = True
) -> tuple[int, int]:
    """Width and height of an acceptable image. Raise `ImageRefused` otherwise; for a broken one if `whole` is asked.

    Size and pixels are checked before anything is decoded, so that a decompression bomb costs nothing.
    """
    from PIL import Image, UnidentifiedImageError

    if len(data) > max_bytes:
        raise ImageRefused(f"an image of {len(data)} bytes is over the limit of {max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise ImageRefused(f"an image of {width} x {height} pixels is over the limit of {max_pixels}")
                if max(width, height) > MAX_ASPECT * min(width, height):
                    raise ImageRefused(f"an image of {width} x {height} pixels is narrower than 1 to {MAX_ASPECT}")
                if whole:
                    picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefused(f"an image of far more pixels than the limit of {max_pixels}") from error
    except UnidentifiedImageError as error:
        raise ImageRefused(f"this is no image of a known kind ({', '.join(FORMATS)})") from error
    except _TORN as error:
        if isinstance(error, ImageRefused):
            raise
        raise ImageRefused(f"this is not a whole image: {str(error).rstrip('.')}") from error
    return width, height
