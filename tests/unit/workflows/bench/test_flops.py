"""FLOPs against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from workflows.bench.flops import Shape, forward_flops, head_flops, text_flops, vision_flops
from workflows.bench.train import Step, document_of, positions

SHAPE = Shape(
    hidden=8, layers=2, heads=2, kv_heads=1, head=4, mlp=10, vocabulary=100,
    vision_hidden=6, vision_layers=3, vision_mlp=5, patch=12, merge=2, window=4, full_layers=1,
)  # fmt: skip


def test_text_by_hand():
    # a token and layer: q 2*8*8, k and v 2*8*4 each, o 2*8*8, gate, up and down 2*8*10 each
    a_token = 128 + 64 + 64 + 128 + 3 * 160
    # scores and their product with the values, 2 heads of 4, half of 5 x 5
    attention = 2 * (2 * 2 * 4 * 25) // 2
    assert text_flops(SHAPE, 5) == 2 * (5 * a_token + attention)


def test_the_head_is_paid_for_trained_tokens_alone():
    assert head_flops(SHAPE, 3) == 3 * 2 * 8 * 100


def test_a_picture_by_hand():
    # 8 patches: two windows of 4, two tokens after merging
    embedding = 8 * 2 * 12 * 6
    a_patch = 2 * 6 * 18 + 2 * 6 * 6 + 3 * 2 * 6 * 5  # q, k, v together; projection; gate, up and down
    windowed, whole = 2 * 2 * 6 * 8 * 4, 2 * 2 * 6 * 8 * 8
    merger = 2 * (2 * 24 * 24 + 2 * 24 * 8)
    assert vision_flops(SHAPE, 8) == embedding + 3 * 8 * a_patch + 2 * windowed + whole + merger


def test_deepstack_has_a_merger_for_each_layer_it_takes_from_and_its_mlp_is_not_gated():
    deep = replace(SHAPE, vision_products=2, mergers=3)
    merger = 2 * (2 * 24 * 24 + 2 * 24 * 8)
    up_or_down = 3 * 8 * 2 * 6 * 5
    assert vision_flops(deep, 8) == vision_flops(SHAPE, 8) + 2 * merger - up_or_down


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_pictures_tower_agrees_with_torch_own_count(family):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CONFIG_MAPPING, AutoModel

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24}
    taken = {"deepstack_visual_indexes": [0], "num_position_embeddings": 64} if family == "qwen3_vl" else {}
    text = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 200,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 2, 2]},
    }  # fmt: skip
    kind: Any = CONFIG_MAPPING[family]
    config = kind(text_config=text, vision_config=vision | taken)
    tower = AutoModel.from_config(config, attn_implementation="eager").visual
    shape = Shape.of(config)
    grid = torch.tensor([[1, 8, 8]])
    patches = torch.zeros(64, shape.patch)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(patches, grid_thw=grid)
    assert vision_flops(shape, 64) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_batch_is_the_sum_of_its_parts():
    parts = text_flops(SHAPE, 5) + text_flops(SHAPE, 9) + head_flops(SHAPE, 4) + vision_flops(SHAPE, 8)
    assert forward_flops(SHAPE, [5, 9], 4, [8]) == parts


def test_products_agree_with_torch_own_count_on_a_real_layer():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    names = ("q", "o", "gate", "up")
    sizes = {"q": (8, 8), "o": (8, 8), "gate": (8, 10), "up": (8, 10)}
    layers = {name: torch.nn.Linear(*sizes[name], bias=False) for name in names}
    narrow = [torch.nn.Linear(8, 4, bias=False) for _ in "kv"]
    x = torch.randn(5, 8)
    with FlopCounterMode(display=False) as counter:
        torch.nn.Linear(10, 8, bias=False)(layers["up"](x) * layers["gate"](x))
        layers["o"](layers["q"](x))
        for layer in narrow:
            layer(x)
    attention = 2 * 2 * 8 * 25 // 2
    assert counter.get_total_flops() == text_flops(SHAPE, 5) // SHAPE.layers - attention


def test_the_shape_is_read_from_the_models_config():
    text = SimpleNamespace(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=384,
        vocab_size=1024,
    )  # fmt: skip
    vision = SimpleNamespace(
        hidden_size=96, depth=3, intermediate_size=256, patch_size=14, temporal_patch_size=2, in_channels=3,
        spatial_merge_size=2, window_size=112, fullatt_block_indexes=[2, 7],
    )  # fmt: skip
    shape = Shape.of(SimpleNamespace(text_config=text, vision_config=vision))
    assert (shape.head, shape.patch, shape.window, shape.full_layers) == (32, 1176, 64, 1)


def test_timed_steps_lie_evenly_over_the_stage():
    assert positions(580, 4) == [73, 218, 363, 508]
    assert positions(3, 5)[0] == 1
    assert max(positions(3, 5)) == 3


def test_speed_and_share_of_the_peak_are_medians_over_steps():
    made = [Step(1.0, 100, 2_000_000), Step(2.0, 100, 2_000_000), Step(0.5, 100, 2_000_000)]
    document = document_of(made, 4e6)
    assert document["tokens_per_s"] == {"median": 100.0, "low": 50.0, "high": 200.0, "n": 3}
    assert document["share_of_peak"]["median"] == pytest.approx(0.5)
    assert document["mflops_per_token"] == pytest.approx(0.02)
