"""Pixels and the forward pass on real, very small models of both families."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from actors.agent.seams import ImageMissing
from actors.agent.trajectory import ImageRef, Segment, SegmentKind, VersionSpan, WeightVersion
from actors.model.batch import collate
from actors.model.expansion import expand
from actors.model.forward import token_logprobs
from actors.model.images import BlobImages
from actors.model.pixels import Pixels, count_image_tokens
from actors.model.renderer import ChatRenderer
from actors.model.tiny import build_model, build_tokenizer, save_processor
from cluster.blobs import BlobStore
from tests.unit.actors.model.small import FAMILIES, QWEN2_5


@pytest.fixture(scope="module", params=list(FAMILIES))
def size(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["who founded it? ilse tarn."] * 3, QWEN2_5.vocabulary)


@pytest.fixture(scope="module")
def model(tokenizer, size):
    return build_model(tokenizer, size, seed=1).eval()


@pytest.fixture(scope="module")
def pixels(tokenizer, size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    save_processor(tokenizer, size, folder)
    images = BlobImages(BlobStore(tmp_path_factory.mktemp("blobs")))
    return Pixels.load(folder, images)


def picture(width: int, height: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, format="PNG")
    return out.getvalue()


@pytest.mark.parametrize(("width", "height"), [(112, 112), (200, 60), (60, 200), (1, 1), (500, 400), (57, 113)])
def test_an_image_is_counted_as_long_as_the_processor_makes_it(pixels, width, height):
    ref = pixels._images.put(picture(width, height, 0))
    _, grid = pixels.get(ref)
    assert pixels.n_tokens(ref) == int(grid.prod()) // 4
    assert count_image_tokens(pixels._processor, width, height) <= 16  # of 112 x 112 pixels, or 128 x 128


def test_pixels_raise_what_the_store_raises(pixels):
    with pytest.raises(ImageMissing):
        pixels.get(ImageRef("0" * 64, 10, 10))


def episode(renderer, refs, reply: str) -> list[Segment]:
    ids = renderer.action(reply)
    n = len(ids)
    said = Segment(
        SegmentKind.ACTION, ids, np.zeros(n, dtype=np.float32), (VersionSpan(WeightVersion(0), 0, n),), text=reply
    )
    return [renderer.open("<image>" * len(refs) + "who founded it?", refs), said]


def test_logprobs_are_those_of_each_sequence_alone_whatever_it_is_padded_with(tokenizer, model, pixels):
    renderer = ChatRenderer(tokenizer, pixels)
    refs = [pixels._images.put(picture(112, 112, seed)) for seed in (1, 2, 3)]
    episodes = [
        episode(renderer, refs[:1], "ilse tarn."),
        episode(renderer, [], "it."),
        episode(renderer, refs[1:], "who founded it? ilse"),
    ]
    sequences = [expand(segments, renderer.image_token) for segments in episodes]
    together = token_logprobs(model, collate(sequences, pixels, renderer.end_of_turn))
    alone = [token_logprobs(model, collate([it], pixels, renderer.end_of_turn)) for it in sequences]
    assert together.shape == (sum(int(it.loss_mask.sum()) for it in sequences),)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_logprobs_are_the_models_own_distribution_at_the_temperature(tokenizer, model, pixels):
    renderer = ChatRenderer(tokenizer, pixels)
    segments = episode(renderer, [], "ilse tarn.")
    batch = collate([expand(segments, renderer.image_token)], pixels, renderer.end_of_turn)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits[0]
        for temperature in (1.0, 0.5):
            every = torch.log_softmax(logits / temperature, dim=-1)
            at = batch.loss_mask[0].nonzero().flatten()
            expected = every[at - 1, batch.input_ids[0, at]]
            torch.testing.assert_close(token_logprobs(model, batch, temperature), expected, atol=1e-5, rtol=1e-4)


def test_the_picture_matters_and_its_place_among_pictures_too(tokenizer, model, pixels):
    renderer = ChatRenderer(tokenizer, pixels)
    one, two = (pixels._images.put(picture(112, 112, seed)) for seed in (4, 5))

    def of(*refs):
        batch = collate([expand(episode(renderer, refs, "ilse"), renderer.image_token)], pixels, renderer.end_of_turn)
        return token_logprobs(model, batch)

    assert not torch.allclose(of(one, two), of(two, one), atol=1e-5)


def test_a_picture_that_comes_twice_is_read_once_and_counts_as_if_read_twice(tokenizer, model, pixels):
    renderer = ChatRenderer(tokenizer, pixels)
    one, two = (pixels._images.put(picture(112, 112, seed)) for seed in (4, 5))
    batch = collate(
        [expand(episode(renderer, refs, "ilse"), renderer.image_token) for refs in ([one, two], [two, one, two])],
        pixels,
        renderer.end_of_turn,
    )
    assert batch.image_index is not None
    assert batch.image_index.tolist() == [0, 1, 1, 0, 1]
    patches = batch.pixel_values.chunk(2)
    apart = replace(batch, image_index=None, pixel_values=torch.cat([patches[i] for i in batch.image_index]))
    torch.testing.assert_close(token_logprobs(model, batch), token_logprobs(model, apart), atol=1e-5, rtol=1e-4)


def test_the_same_seed_makes_the_same_model(tokenizer, model, size):
    again, other = (build_model(tokenizer, size, seed=seed).state_dict() for seed in (1, 2))
    mine = model.state_dict()
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    assert any(not torch.equal(mine[name], other[name]) for name in mine)
