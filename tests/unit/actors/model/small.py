"""The smallest models of both families that the tests of this folder build."""

from __future__ import annotations

from actors.model.tiny import TinySize

QWEN2_5 = TinySize(
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=32,
    mrope_section=(2, 3, 3),
    vision_hidden=32,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=32,
    vocabulary=300,
)
QWEN3 = TinySize(
    family="qwen3_vl",
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=32,
    mrope_section=(4, 2, 2),
    vision_hidden=32,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=32,
    vocabulary=300,
    picture=128,
)
FAMILIES = {size.family: size for size in (QWEN2_5, QWEN3)}
