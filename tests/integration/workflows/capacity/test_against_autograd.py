"""What a plan counts of a pass beside what autograd saves in real passes of small models of both architectures.

Small models are the hard case: what the count leaves out, or adds up roughly, weighs more in them.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from actors.learner.parts import freeze_parts
from actors.model.batch import TokenBatch
from actors.model.forward import token_logprobs
from workflows.capacity.activations import FP32, Pass, activations
from workflows.capacity.architecture import ModelFiles, architecture
from workflows.capacity.known import KNOWN

LEAST, MOST = 0.95, 1.2  # counted over saved
ROWS, TOKENS, TRAINED, SIDE = 2, 800, 200, 16


def small(name: str) -> dict[str, Any]:
    config = copy.deepcopy(KNOWN[name].config)
    config["text_config"] |= {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config["text_config"]["rope_parameters"] |= {"mrope_section": [4, 6, 6]}
    deep = {"fullatt_block_indexes": [3]} if name.startswith("qwen2.5") else {"deepstack_visual_indexes": [0, 1, 2]}
    config["vision_config"] |= {
        "hidden_size": 160, "intermediate_size": 427, "num_heads": 4, "depth": 4, "out_hidden_size": 256, **deep
    }  # fmt: skip
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return config | {key: 500 + i for i, key in enumerate(ids)}


def batch_for(config: Any, pictures: bool) -> tuple[TokenBatch, Pass]:
    ids = torch.randint(10, 200, (ROWS, TOKENS // ROWS))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -TRAINED // ROWS :] = True
    if not pictures:
        return TokenBatch(ids, mask, None, None), Pass(TOKENS, TRAINED, 0)
    each = SIDE**2 // config.vision_config.spatial_merge_size**2
    ids[:, 2 : 2 + each] = config.image_token_id
    pixels = torch.randn(ROWS * SIDE**2, 3 * 2 * config.vision_config.patch_size**2)
    return TokenBatch(ids, mask, pixels, torch.tensor([[1, SIDE, SIDE]] * ROWS)), Pass(TOKENS, TRAINED, ROWS * each)


def saved_by(model: Any, batch: TokenBatch) -> int:
    """Bytes of the storages, parameters left out, that a forward pass leaves to its backward pass."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # so that no address is given twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(model, batch)
    return sum(storages.values())


@pytest.mark.parametrize("pictures", [False, True], ids=["words", "pictures"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-8b"])
def test_a_pass_saves_about_what_is_counted(name, precision, checkpointing, pictures):
    model, shape = built(name, precision, checkpointing)
    batch, work = batch_for(model.config, pictures)
    width = 2 if precision == "bfloat16" else 4
    found = activations(shape, work, width, checkpointing)
    of_head = FP32 * shape.text.vocabulary * work.trained  # of its three copies autograd saves one
    assert LEAST < (found.text + found.vision + of_head) / saved_by(model, batch) < MOST


def test_a_frozen_tower_saves_nothing():
    model, shape = built("qwen2.5-vl-7b", "bfloat16", False, ("vision", "projector"))
    batch, work = batch_for(model.config, pictures=True)
    found = activations(shape, work, 2, checkpointing=False)
    assert found.vision == 0
    of_head = FP32 * shape.text.vocabulary * work.trained
    assert LEAST < (found.text + of_head) / saved_by(model, batch) < MOST


def built(name: str, precision: str, checkpointing: bool, freeze: tuple[str, ...] = ()) -> tuple[Any, Any]:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    content = small(name)
    config = CONFIG_MAPPING[content["model_type"]].from_dict(copy.deepcopy(content))
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    model = model.to(getattr(torch, precision)).train()
    freeze_parts(model, freeze)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model, architecture(ModelFiles(name, content, None, shipped=True), freeze)
