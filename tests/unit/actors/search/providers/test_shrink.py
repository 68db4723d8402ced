"""A picture within a limit on bytes."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actors.search.pictures import UnreadablePicture
from actors.search.providers.shrink import media_type, within


def noise(width: int, height: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    encoded = io.BytesIO()
    Image.effect_noise((width, height), 90).convert(mode).save(encoded, format=form)
    return encoded.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_fits_stays_as_it_is(form):
    data = noise(20, 10, form)
    assert within(data, len(data)) == (data, f"image/{form.lower()}")


@settings(max_examples=20)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(700, 9000), st.sampled_from(["RGB", "RGBA", "L", "P"]))
def test_any_picture_fits_afterwards_and_keeps_its_shape(width, height, limit, mode):
    data = noise(width, height, "PNG", mode)
    made, kind = within(data, limit)
    assert len(made) <= limit
    assert media_type(made) == kind
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.width <= width
        assert picture.height <= height
        if min(picture.size) > 8:
            assert picture.width / picture.height == pytest.approx(width / height, rel=0.3)


def test_a_format_that_is_not_taken_becomes_one_that_is():
    made, kind = within(noise(20, 10, "GIF", "L"), 500_000)
    assert kind == media_type(made) == "image/jpeg"


def test_a_picture_on_its_side_is_upright_afterwards():
    encoded, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    Image.effect_noise((80, 20), 90).convert("RGB").save(encoded, format="JPEG", exif=exif, quality=100)
    made, _ = within(encoded.getvalue(), 1000)
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.height > picture.width


@pytest.mark.parametrize("data", [b"", b"no picture", noise(60, 60)[:900]])
def test_what_does_not_decode_is_said_to_be_unreadable(data):
    with pytest.raises(UnreadablePicture, match="not a readable picture"):
        within(data, 400)


def test_a_limit_that_nothing_fits_is_said_and_ends():
    with pytest.raises(UnreadablePicture, match="no picture fits"):
        within(noise(30, 30), 100)
