"""Bounds of pictures: part of a model's address, one folder for all who open it, and then in what is exported."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from actors.model.bounds import bounded
from actors.model.images import BlobImages
from actors.model.load import check_model_folder, load_policy, local_model, save_policy
from actors.model.pixels import Pixels
from actors.model.renderer import load_renderer
from actors.model.settings import PictureSettings, split_address
from actors.model.tiny import save_tiny
from cluster.blobs import BlobStore
from cluster.errors import UserError
from tests.unit.actors.model.small import FAMILIES

SMALL = PictureSettings(max_pixels=64 * 64)


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request, tmp_path_factory):
    return save_tiny(["who?"] * 3, tmp_path_factory.mktemp("model") / "tiny", size=FAMILIES[request.param])


pixels = st.integers(1, 10**8)


@given(least=st.none() | pixels, more=st.none() | pixels, plain=st.sampled_from(["m", "s3://b/m", "/a#b/m", "/a#x=1"]))
@settings(max_examples=50, deadline=None)
def test_an_address_gives_back_the_bounds_that_it_was_given(least, more, plain):
    wanted = PictureSettings(least, None if more is None else more + (least or 0))
    assert split_address(wanted.on(plain)) == (plain, wanted)
    assert split_address(PictureSettings(max_pixels=7 + (least or 0)).on(wanted.on(plain)))[1].max_pixels == 7 + (
        least or 0
    )


def test_bounds_that_leave_nothing_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="min_pixels is 5 and must be at most max_pixels=4"):
        PictureSettings(5, 4).check()
    with pytest.raises(UserError, match="is no address of a model"):
        local_model("m#max_pixels=many")
    with pytest.raises(UserError, match="cannot have these bounds"):
        local_model(f"{folder}#max_pixels=10", tmp_path)


def test_a_model_without_bounds_or_with_its_own_is_the_folder_itself(folder, tmp_path):
    assert local_model(folder, tmp_path) == folder
    size = AutoImageProcessor.from_pretrained(folder).size
    own = PictureSettings(size["shortest_edge"], size["longest_edge"])
    assert local_model(own.on(str(folder)), tmp_path) == folder
    assert not list(tmp_path.iterdir())


def test_everyone_who_opens_a_bounded_model_reads_pictures_alike(folder, tmp_path):
    address = SMALL.on(str(folder))
    model = local_model(address, tmp_path / "cache")
    check_model_folder(model)
    images = BlobImages(BlobStore(tmp_path / "blobs"))
    out = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 90, 3), dtype=np.uint8))
    picture.save(out, format="PNG")
    ref = images.put(out.getvalue())

    placed = load_renderer(model).open("<image>", [ref]).images[0]
    values, grid = Pixels.load(model, images).get(ref)
    processed = AutoProcessor.from_pretrained(model)(text=["<|image_pad|>"], images=[picture], return_tensors="pt")
    assert placed.n_tokens == int(grid.prod()) // 4 == processed["input_ids"].shape[1] <= 4
    assert values.shape == processed["pixel_values"].shape
    assert load_renderer(folder).open("<image>", [ref]).images[0].n_tokens > 4
    assert local_model(address, tmp_path / "cache") == model  # and not made twice
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_is_saved_from_a_bounded_model_has_the_bounds_in_its_own_files(folder, tmp_path):
    model = local_model(SMALL.on(str(folder)), tmp_path / "cache")
    save_policy(load_policy(model), tmp_path / "saved", model)
    assert AutoImageProcessor.from_pretrained(tmp_path / "saved").size["longest_edge"] == 64 * 64
    assert not any(file.is_symlink() for file in (tmp_path / "saved").iterdir())
    assert local_model(SMALL.on(str(tmp_path / "saved")), tmp_path / "cache") == tmp_path / "saved"


@pytest.mark.parametrize(
    "said",
    [
        {"min_pixels": 3136, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessor"},  # Qwen2.5-VL's
        {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "image_processor_type": "Qwen2VLImageProcessor"},
        {"image_processor_type": "Qwen2VLImageProcessor"},
    ],
)
def test_both_ways_in_which_files_name_the_bounds_are_understood(said, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(said))
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({"processor_class": "Some"}))
    made = bounded(tmp_path / "model", PictureSettings(100_000, 900_000), tmp_path / "cache")
    size = AutoImageProcessor.from_pretrained(made).size
    assert (size["shortest_edge"], size["longest_edge"]) == (100_000, 900_000)
    assert (made / "processor_config.json").is_symlink()
