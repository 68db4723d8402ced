"""Whether bytes from a stranger are a picture of an acceptable size. Decoding them is what is bounded here."""

from __future__ import annotations

import io
import warnings

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # parsers of other formats are never entered
TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")


class RefusedPicture(ValueError):
    """Torn, false, of another format, or of more pixels than are decoded."""


def check_picture(data: bytes, max_pixels: int) -> None:
    """Raises RefusedPicture. The size is read from the header first; only then is the first frame decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is stricter
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise RefusedPicture(f"a picture of {width} x {height} pixels")
                picture.load()
    except RefusedPicture:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError) as error:
        raise RefusedPicture(f"not a readable picture: {type(error).__name__}") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise RefusedPicture("a picture of too many pixels") from error
