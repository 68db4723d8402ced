import contextlib
import io
import struct
import warnings
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.search.fetch.pixels import RefusedPicture, check_picture

BOUND = 10_000


def encoded(form, size=(100, 100), **options):
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(out, form, **options)
    return out.getvalue()


def png_header(width, height, *chunks):
    """A PNG that claims a size and holds no such pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*pair) for pair in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_an_ordinary_picture_passes(form):
    check_picture(encoded(form), BOUND)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_one_pixel_row_too_many_is_refused(form):
    with pytest.raises(RefusedPicture, match="100 x 101"):
        check_picture(encoded(form, (100, 101)), BOUND)


HOSTILE = {
    "a bomb of 400 megapixels": png_header(20_000, 20_000, (b"IDAT", zlib.compress(bytes(1000)))),
    "the widest header": png_header(2**31 - 1, 2**31 - 1),
    "no width": png_header(0, 100),
    "a bomb of text": png_header(100, 100, (b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * 2**20)))),
    "a torn picture": encoded("JPEG")[:200],
    "a torn png": encoded("PNG")[:-30],
    "a bitmap": encoded("BMP"),
    "a tiff": encoded("TIFF"),
    "an icon": encoded("ICO"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "html": b"<html></html>",
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_picture_is_refused_that_is(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RefusedPicture):
            check_picture(data, BOUND)


def test_of_an_animation_the_first_picture_alone_is_decoded():
    frames = [Image.new("P", (100, 100), colour) for colour in range(9)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    data = animated.getvalue()
    check_picture(data, BOUND)
    check_picture(data[: len(encoded("GIF")) + 40], BOUND)  # what comes after it may be torn


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.integers(0, 200), st.binary(min_size=1, max_size=20))
def test_a_damaged_picture_passes_or_is_refused_and_nothing_else(form, at, junk):
    good = encoded(form, (8, 8))
    with contextlib.suppress(RefusedPicture):  # nothing else may come out
        check_picture(good[:at] + junk + good[at + len(junk) :], BOUND)
