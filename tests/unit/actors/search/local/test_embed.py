"""Vectors of pictures by real, tiny, random models of transformers."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actors.search.local.embed import ModelEmbedder, dimension, model_digest, unit_rows
from cluster.errors import UserError
from tests.unit.actors.search.local.pictures import noise, tiny_model

KINDS = {"clip": 12, "siglip": 16, "vit": 16, "dinov2": 16}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(folder / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_unit_vectors_of_its_own_length(models, kind):
    embedder = ModelEmbedder(models[kind], "cpu", batch=2)
    pictures = [noise(seed) for seed in range(5)]
    vectors = embedder.embed(pictures)
    assert vectors.shape == (5, KINDS[kind])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert len({tuple(row.round(4)) for row in vectors}) == 5
    assert dimension(embedder) == KINDS[kind]


def test_batches_of_any_size_give_the_same_vectors(models):
    pictures = [noise(seed) for seed in range(5)]
    whole = ModelEmbedder(models["clip"], "cpu", batch=8).embed(pictures)
    for batch in (1, 2, 5):
        assert ModelEmbedder(models["clip"], "cpu", batch=batch).embed(pictures) == pytest.approx(whole, abs=1e-5)


def test_clip_gives_the_features_that_are_compared_with_texts(models):
    import torch
    from transformers import AutoImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(models["clip"])
    pixels = AutoImageProcessor.from_pretrained(models["clip"])(images=[noise(1)], return_tensors="pt")
    with torch.no_grad():
        pooled = model.vision_model(**pixels).pooler_output
        expected = model.visual_projection(pooled)[0]
    expected = (expected / expected.norm()).numpy()
    assert ModelEmbedder(models["clip"], "cpu").embed([noise(1)])[0] == pytest.approx(expected, abs=1e-5)


def test_a_picture_without_colour_is_embedded_too(models):
    assert ModelEmbedder(models["siglip"], "cpu").embed([noise(1).convert("L")]).shape == (1, 16)


def test_threads_that_come_at_once_load_the_model_once(models, monkeypatch):
    from transformers import AutoModel

    loads, load = [], AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *args, **kwargs: loads.append(1) or load(*args, **kwargs))
    embedder = ModelEmbedder(models["vit"], "cpu")
    threads = [threading.Thread(target=embedder.embed, args=([noise(1)],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_other_weights_have_another_digest_and_a_copy_has_the_same(models, tmp_path):
    same = tiny_model(tmp_path / "same", "clip", seed=0)
    other = tiny_model(tmp_path / "other", "clip", seed=1)
    assert model_digest(models["clip"]) == model_digest(same) != model_digest(other)
    assert ModelEmbedder(same).digest == model_digest(same)
    (tmp_path / "same" / "preprocessor_config.json").write_text("{}")
    assert model_digest(same) != model_digest(models["clip"])


def test_a_folder_that_is_no_such_model_is_told(models, tmp_path):
    with pytest.raises(UserError, match=r"no model at .*nowhere"):
        ModelEmbedder(str(tmp_path / "nowhere")).embed([noise(1)])
    with pytest.raises(UserError, match="no model at s3://"):
        ModelEmbedder("s3://bucket/model").embed([noise(1)])
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="cannot be used for pictures"):
        ModelEmbedder(str(tmp_path), "cpu").embed([noise(1)])
    with pytest.raises(UserError, match="batch is 0"):
        ModelEmbedder(models["clip"], batch=0)


def test_weights_that_are_pickles_are_not_read(models, tmp_path):
    import torch
    from transformers import CLIPModel

    folder = tiny_model(tmp_path / "model", "clip")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(CLIPModel.from_pretrained(models["clip"]).state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        ModelEmbedder(folder, "cpu").embed([noise(1)])


def test_a_gpu_that_is_not_there_is_told(models, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        ModelEmbedder(models["clip"], "cuda").embed([noise(1)])
    assert ModelEmbedder(models["clip"], "auto").embed([noise(1)]).shape == (1, 12)


@pytest.mark.gpu
def test_a_gpu_gives_the_vectors_of_the_cpu(models):
    pictures = [noise(seed) for seed in range(3)]
    on_cpu = ModelEmbedder(models["clip"], "cpu").embed(pictures)
    assert ModelEmbedder(models["clip"], "cuda").embed(pictures) == pytest.approx(on_cpu, abs=1e-3)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-(2.0**50), 2.0**50, width=32))
)
def test_rows_come_to_length_one_or_stay_zero(vectors):
    norms = np.linalg.norm(unit_rows(vectors), axis=1)
    for norm, row in zip(norms, vectors, strict=True):
        assert norm == pytest.approx(1 if row.any() else 0, abs=1e-4)


@pytest.mark.parametrize("vectors", [[1.0, 2.0], [[]], [[float("nan")]], [[float("inf")]], [[[1.0]]]])
def test_vectors_that_cannot_be_compared_are_refused(vectors):
    with pytest.raises(ValueError, match="vectors"):
        unit_rows(np.array(vectors))
