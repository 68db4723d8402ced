"""Pictures are decoded within bounds, and their keys tell the same from others."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.search.local import pixels
from actors.search.pictures import UnreadablePicture
from tests.unit.actors.search.local.pictures import encoded, noise


def bomb(side):
    """A PNG that announces `side` x `side` pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_pixels_have_one_key_however_they_are_encoded(form):
    key = pixels.pixel_sha256(noise(1))
    assert pixels.pixel_sha256(pixels.decoded(encoded(noise(1), form))) == key
    assert pixels.pixel_sha256(noise(2)) != key


def test_the_same_pixels_in_another_shape_have_another_key():
    assert pixels.pixel_sha256(Image.new("RGB", (4, 2))) != pixels.pixel_sha256(Image.new("RGB", (2, 4)))


@given(st.integers(0, 200))
def test_a_scaled_or_compressed_picture_is_near_and_others_are_far(seed):
    value = pixels.dhash(noise(seed))
    small = noise(seed).resize((40, 30), Image.Resampling.LANCZOS)
    assert (value ^ pixels.dhash(pixels.decoded(encoded(small, "JPEG", quality=80)))).bit_count() <= 8
    assert (value ^ pixels.dhash(noise(seed + 1000))).bit_count() > 8


def test_dhash_is_the_sign_of_steps_to_the_right():
    falling = Image.linear_gradient("L").rotate(90)
    assert pixels.dhash(falling) in (0, 2**64 - 1)
    assert pixels.dhash(falling) ^ pixels.dhash(falling.rotate(180)) == 2**64 - 1
    assert not pixels.comparable(pixels.dhash(Image.new("RGB", (9, 9), "red")))
    assert pixels.comparable(pixels.dhash(noise(3)))


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(noise(1))[:200], b"%!PS-Adobe", bomb(60_000), bomb(9000)])
def test_what_is_no_acceptable_picture_is_refused(data):
    with pytest.raises(UnreadablePicture):
        pixels.decoded(data)


def test_a_picture_of_too_many_pixels_is_not_decoded():
    with pytest.raises(UnreadablePicture, match="9000 x 9000 pixels is too large"):
        pixels.decoded(bomb(9000))


def test_a_picture_of_too_many_bytes_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_BYTES", 10)
    with pytest.raises(UnreadablePicture, match="over the limit of 10"):
        pixels.decoded(encoded(noise(1)))


def test_thumbnails_are_bounded_jpegs_of_any_picture():
    small = pixels.decoded(pixels.thumbnail(noise(1, (300, 100)), 60))
    assert small.size == (60, 20)
    assert pixels.decoded(pixels.thumbnail(noise(1), 500)).size == (64, 48)
    assert pixels.decoded(pixels.thumbnail(noise(1).convert("RGBA"), 10)).size == (10, 8)
    assert Image.open(__import__("io").BytesIO(pixels.thumbnail(noise(1), 10))).format == "JPEG"
