"""Pictures that travel in a stream: small, and made anew."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from actors.agent.seams import ImageMissing
from actors.agent.trajectory import ImageRef, Tool, ToolRequest
from tests.unit.actors.agent.stage import CROP, THUMBNAIL, Tools, found
from workflows.serve.thumbnails import MAX_CHARS, SIDE, ShowingToolbox, thumbnail_document


def encoded(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB", noise: bool = True, **how) -> bytes:
    depth = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], *depth), dtype=np.uint8)
    picture = Image.fromarray(pixels if noise else np.zeros_like(pixels))
    written = io.BytesIO()
    picture.save(written, kind, **how)
    return written.getvalue()


def shown(data: bytes) -> Image.Image:
    document = thumbnail_document(data)
    assert document is not None
    assert len(document) <= MAX_CHARS
    head, _, body = document.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(body, validate=True)))
    assert picture.format == "JPEG"
    picture.load()
    return picture


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encoded((1000, 500)), (256, 128)),
        (encoded((1000, 500), "JPEG"), (256, 128)),
        (encoded((300, 900), "WEBP"), (85, 256)),
        (encoded((20, 10)), (20, 10)),  # never enlarged
        (encoded((300, 300), mode="L"), (256, 256)),
        (encoded((400, 2), "GIF"), (256, 1)),
        (encoded((256, 256)), (256, 256)),  # noise, which JPEG can hardly make smaller
    ],
)
def test_a_picture_becomes_a_small_jpeg_of_its_shape(data, size):
    picture = shown(data)
    assert picture.size == size
    assert max(picture.size) <= SIDE


def test_what_is_transparent_is_white_and_a_camera_s_turn_is_made():
    picture = shown(encoded((50, 50), mode="RGBA", noise=False))
    assert min(min(band) for band in picture.getextrema()) > 250
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    assert shown(encoded((100, 50), "JPEG", exif=turned)).size == (50, 100)


def test_nothing_of_the_file_but_its_pixels_is_passed_on():
    data = encoded((50, 50), "JPEG", comment=b"<script>alert(1)</script>") + b"PK\x03\x04 a second file"
    document = thumbnail_document(data)
    assert document is not None
    written = base64.b64decode(document.partition(",")[2])
    assert b"script" not in written
    assert b"PK" not in written[-100:]


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded((200, 200))[:500], encoded((500, 1))],
    ids=["empty", "svg", "torn", "narrow"],
)
def test_what_is_no_acceptable_picture_is_left_out(data):
    assert thumbnail_document(data) is None


def test_a_bomb_is_refused_before_it_is_decoded():
    head = bytearray(encoded((10, 10)))
    head[16:24] = (50_000).to_bytes(4) * 2  # what a PNG says of its size
    assert thumbnail_document(bytes(head)) is None


def test_a_search_returns_with_the_thumbnails_of_what_it_found_each_made_once():
    asked = []

    def bytes_of(ref: ImageRef) -> bytes:
        asked.append(ref)
        if ref == CROP:
            raise ImageMissing("forgotten")
        return encoded((30, 30))

    page = found("a", "b", thumbnail=THUMBNAIL, crop=CROP)
    toolbox = ShowingToolbox(Tools(page, page), bytes_of)
    request = ToolRequest(Tool.TEXT_SEARCH, "q")
    assert asyncio.run(toolbox.call(request, deadline=1.0)) is page
    assert list(toolbox.documents) == [THUMBNAIL.sha256]
    asyncio.run(toolbox.call(request, deadline=1.0))
    assert asked.count(THUMBNAIL) == 1
