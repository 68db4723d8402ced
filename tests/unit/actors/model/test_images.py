import io
import struct
import zlib

import pytest
from PIL import Image, ImageFile

from actors.agent.seams import ImageMissing, ImageRefused
from actors.agent.trajectory import ImageRef
from actors.model.images import BlobImages
from cluster.blobs import BlobStore


def png(width: int = 8, height: int = 6) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def images(tmp_path) -> BlobImages:
    return BlobImages(BlobStore(tmp_path))


def test_an_image_comes_back_by_its_reference(images):
    ref = images.put(png())
    assert (ref.width, ref.height) == (8, 6)
    assert images.get(ref) == png()


def test_the_same_bytes_are_one_image(images):
    assert images.put(png()) == images.put(png())


def test_what_lies_here_already_is_not_decoded_again(images, monkeypatch):
    data = png()
    first = images.put(data)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    assert images.put(data) == first


def test_an_image_is_there_or_not_without_its_bytes(images, tmp_path, monkeypatch):
    ref = images.put(png())
    monkeypatch.setattr(BlobStore, "get", lambda *_: pytest.fail("its bytes were read"))
    assert images.has(ref)
    assert not images.has(ImageRef("0" * 64, 8, 6))
    assert not images.has(ImageRef("../etc/passwd", 8, 6))


@pytest.mark.parametrize("data", [b"", b"not an image", png()[:-30]])
def test_what_is_no_whole_image_is_refused(images, data):
    with pytest.raises(ImageRefused):
        images.put(data)


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"<svg/>", b"P6 1 1 255 abc"]
)
def test_kinds_of_images_that_start_programs_or_old_decoders_are_not_opened(images, head):
    with pytest.raises(ImageRefused, match=r"no image of a known kind \(PNG, JPEG"):
        images.put(head)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_cameras_and_the_web_use_is_let_in(images, format):
    out = io.BytesIO()
    Image.new("RGB", (8, 6)).save(out, format=format)
    assert images.put(out.getvalue()).width == 8


def test_a_decompression_bomb_is_refused_undecoded_in_a_plain_sentence(images):
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(ImageRefused, match=r"far more pixels than the limit of 40000000$"):
        images.put(bytes(bomb))


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    with pytest.raises(ImageRefused, match="over the limit"):
        BlobImages(BlobStore(tmp_path), max_pixels=47).put(png())


def test_an_image_that_no_store_holds_is_missing(images):
    with pytest.raises(ImageMissing):
        images.get(ImageRef("0" * 64, 1, 1))


def test_a_strip_too_narrow_for_the_model_is_refused(images):
    with pytest.raises(ImageRefused, match="narrower than 1 to 200"):
        images.put(png(402, 2))
    assert images.put(png(400, 2)).width == 400
