"""A model folder is checked before anything starts, and comes back as it was saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from actors.model.load import (
    cast_weights,
    check_model_folder,
    exporting,
    load_policy,
    local_model,
    parameter_shapes,
    save_policy,
    upload_model,
)
from actors.model.tiny import save_tiny
from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.actors.model.small import FAMILIES, QWEN2_5


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return save_tiny(["who founded it?"] * 3, tmp_path_factory.mktemp("model") / "tiny", size=QWEN2_5)


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "model")


def _refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        check_model_folder(folder)
    return caught.value.message


def test_a_complete_folder_passes(folder):
    check_model_folder(folder)
    assert local_model(folder) == folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_passes_and_comes_back_from_its_folder(family, tmp_path):
    made = save_tiny(["who founded it?"] * 3, tmp_path / "tiny", size=FAMILIES[family])
    check_model_folder(made)
    model = load_policy(made)
    assert model.config.model_type == family
    assert parameter_shapes(made) == {name: tuple(value.shape) for name, value in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_cast_and_rotary_frequencies_are_not(family, tmp_path):
    model = load_policy(save_tiny(["who founded it?"] * 3, tmp_path / "tiny", size=FAMILIES[family]))
    cast_weights(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    rotary = {name: buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert len(rotary) >= 2
    assert set(rotary.values()) == {torch.float32}


def test_a_missing_folder_is_named(tmp_path):
    assert _refusal(tmp_path / "nowhere") == f"There is no model folder at {tmp_path / 'nowhere'}."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("processor_config.json", "has no image processor"),
    ],
)
def test_a_missing_file_is_named(folder, name, said):
    (folder / name).unlink()
    assert said in _refusal(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_weights_are_refused_at_any_length(folder, kept):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "truncated" in _refusal(folder)


def test_weights_that_are_no_safetensors_are_refused(folder):
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"oops and more")
    assert "is not a safetensors file" in _refusal(folder)


def test_a_shard_that_the_index_names_must_be_there(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}})
    )
    assert "model-00002-of-00002.safetensors is missing" in _refusal(folder)


def test_another_architecture_is_refused_by_name(folder):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    said = _refusal(folder)
    assert "holds LlamaForCausalLM" in said
    assert "runs Qwen2_5_VLForConditionalGeneration and Qwen3VLForConditionalGeneration" in said


@pytest.mark.parametrize("value", [None, 5, [], "Qwen2_5_VLForConditionalGeneration"])
def test_a_config_that_lists_no_architecture_is_refused(folder, value):
    (folder / "config.json").write_text(json.dumps({"architectures": value}))
    assert "holds an unnamed architecture" in _refusal(folder)


def test_a_broken_config_is_refused(folder):
    (folder / "config.json").write_text("{")
    assert "cannot be read" in _refusal(folder)


def test_a_saved_policy_loads_with_the_weights_it_had(folder, tmp_path):
    model = load_policy(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    save_policy(model, tmp_path / "saved", folder)
    again = load_policy(tmp_path / "saved", "bfloat16")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.to(torch.bfloat16))
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_the_config_of_a_model_comes_last_so_that_a_torn_copy_is_no_model(folder, tmp_path, monkeypatch):
    target = Folder(tmp_path / "copied")

    def refuses_the_last(*args):
        if len(target.list()) == len(list(folder.iterdir())) - 1:
            raise OSError("no space")
        upload(*args)

    upload = target.upload
    monkeypatch.setattr(target, "upload", refuses_the_last)
    with pytest.raises(OSError, match="no space"):
        upload_model(folder, target)
    assert "config.json" not in target.list()
    monkeypatch.undo()
    upload_model(folder, target)
    check_model_folder(target.local_path)


def test_of_ranks_that_export_together_one_copies(folder, tmp_path):
    target = Folder(tmp_path / "exported")
    for copies in (False, True):
        with exporting(folder, target, copies=copies) as written:
            shutil.copyfile(folder / "model.safetensors", written / "model.safetensors")
        assert target.exists() == copies
    assert target.list() == sorted(file.name for file in folder.iterdir())


def test_weights_of_the_precision_they_are_stored_in_are_the_file_itself_whose_pages_processes_share(folder, tmp_path):
    save_policy(load_policy(folder, "bfloat16"), tmp_path / "stored", folder)

    def outside_the_file(model) -> list[str]:
        mapped = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(str(tmp_path / "stored/model.safetensors")):
                start, end = (int(address, 16) for address in line.split()[0].split("-"))
                mapped.append(range(start, end))
        return [n for n, p in model.named_parameters() if not any(p.data_ptr() in part for part in mapped)]

    assert outside_the_file(load_policy(tmp_path / "stored", "bfloat16")) == []
    other = load_policy(tmp_path / "stored", "float32")
    assert outside_the_file(other) == [name for name, _ in other.named_parameters()]


def test_an_unknown_dtype_says_what_is_accepted(folder):
    with pytest.raises(ValueError, match="accepted: float32, bfloat16, float16"):
        load_policy(folder, "int4")


def test_parameter_shapes_are_those_of_the_loaded_model(folder):
    loaded = {name: tuple(value.shape) for name, value in load_policy(folder).named_parameters()}
    assert parameter_shapes(folder) == loaded
