"""What is counted of a model, and where it is looked for."""

from __future__ import annotations

import json

import pytest

from actors.learner.settings import LoraSettings
from cluster.errors import UserError
from workflows.capacity.architecture import Parts, architecture, model_files
from workflows.capacity.known import KNOWN, known_model


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_known_model_has_exactly_the_parameters_that_were_published(name, real):
    assert real(name).parts.total == KNOWN[name].published


def test_parts_of_qwen2_5_vl_7b_are_told_apart(real):
    parts = real("qwen2.5-vl-7b").parts
    assert parts.embeddings == 2 * 152_064 * 3584  # the head is not tied
    assert parts.vision + parts.projector == 676_550_144  # as its authors' tower has
    assert real("qwen2.5-vl-3b").parts.embeddings == 151_936 * 2048  # tied: counted once
    assert real("qwen2.5-vl-3b").largest == 151_936 * 2048


def test_what_is_frozen_is_held_and_not_learned(real):
    whole, text = real("qwen2.5-vl-7b"), real("qwen2.5-vl-7b", ("vision", "projector"))
    assert text.parts == whole.parts
    assert text.trained == Parts(0, 0, whole.parts.language, whole.parts.embeddings)
    assert text.held == whole.held == whole.learned
    assert text.learned == whole.parts.total - 676_550_144


def test_lora_trains_two_thin_matrices_beside_each_linear_layer_and_nothing_else():
    found = architecture(model_files("Qwen2.5-VL-3B-Instruct"), lora=LoraSettings(rank=8, targets=["q_proj", "k_proj"]))
    assert found.adapters == 36 * 8 * ((2048 + 2048) + (2048 + 256))
    assert (found.trained.total, found.learned) == (0, found.adapters)
    assert found.held == found.parts.total + found.adapters


def test_shapes_are_read_from_the_configuration(real):
    text, vision = real("qwen3-vl-8b").text, real("qwen3-vl-8b").vision
    assert (text.layers, text.queries, text.keys, text.query_norms) == (36, 4096, 1024, True)
    assert (vision.gated, vision.inputs, vision.projectors, vision.pixels_per_token) == (False, 1536, 4, 1024)
    text, vision = real("qwen2.5-vl-7b").text, real("qwen2.5-vl-7b").vision
    assert (text.head, text.query_norms, vision.gated, vision.projectors) == (128, False, True, 1)


@pytest.mark.parametrize("address", ["models/Qwen2.5-VL-7B-Instruct", "s3x/qwen2.5-vl-7b/", "Qwen2.5-VL-7B"])
def test_a_known_model_is_found_by_the_last_part_of_its_address(address):
    assert known_model(address) is KNOWN["qwen2.5-vl-7b"]


def test_a_folder_wins_over_a_known_name_and_tells_its_largest_picture(tmp_path):
    folder = tmp_path / "Qwen2.5-VL-7B-Instruct"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(KNOWN["qwen2.5-vl-3b"].config))
    assert model_files(str(folder)).most_pixels is None
    (folder / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 903_168}))
    files = model_files(str(folder))
    assert (files.shipped, files.most_pixels) == (False, 903_168)
    assert files.config["text_config"]["hidden_size"] == 2048
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 1000}}))
    assert model_files(str(folder)).most_pixels == 1000


def test_what_cannot_be_planned_for_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no model at models/other.*qwen2\.5-vl-3b, qwen2\.5-vl-7b, qwen3-vl-8b"):
        model_files("models/other")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a JSON object"):
        model_files(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        model_files(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing_like_it"}))
    with pytest.raises(UserError, match="is of the kind nothing_like_it, which transformers does not know"):
        architecture(model_files(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match="is no model that reads text and pictures"):
        architecture(model_files(str(tmp_path)))
