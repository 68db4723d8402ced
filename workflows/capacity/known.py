"""The shapes of models that a configuration may name without having their folder: data.

The numbers are those of the models' published `config.json` and `preprocessor_config.json`, those alone that decide
about memory. `published` is the count of parameters that their hub page shows: a test builds each from these numbers
without memory, and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """A model as far as its memory is concerned."""

    config: dict[str, Any]  # as its config.json
    most_pixels: int  # of one picture, which its image processor scales down to
    published: int  # parameters


def _qwen2_5_vl(text: dict[str, Any], tied: bool) -> dict[str, Any]:
    """Qwen2.5-VL: one vision tower for all sizes."""
    rotary = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return {
        "model_type": "qwen2_5_vl",
        "text_config": text | {"max_position_embeddings": 128_000, "rope_parameters": rotary},
        "vision_config": vision,
        "tie_word_embeddings": tied,
    }


KNOWN = {
    "qwen2.5-vl-3b": KnownModel(
        _qwen2_5_vl(
            {
                "hidden_size": 2048,
                "intermediate_size": 11_008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151_936,
            },
            tied=True,
        ),
        most_pixels=12_845_056,
        published=3_754_622_976,
    ),
    "qwen2.5-vl-7b": KnownModel(
        _qwen2_5_vl(
            {
                "hidden_size": 3584,
                "intermediate_size": 18_944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152_064,
            },
            tied=False,
        ),
        most_pixels=12_845_056,
        published=8_292_166_656,
    ),
    "qwen3-vl-8b": KnownModel(
        {
            "model_type": "qwen3_vl",
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12_288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151_936,
                "max_position_embeddings": 262_144,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5_000_000.0,
                    "mrope_section": [24, 20, 20],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            "tie_word_embeddings": False,
        },
        most_pixels=16_777_216,
        published=8_767_123_696,
    ),
}


def known_model(address: str) -> KnownModel | None:
    """The model that the last part of an address names, as in `models/Qwen2.5-VL-7B-Instruct`; None for others."""
    name = address.rstrip("/").rpartition("/")[2].lower()
    return KNOWN.get(name.removesuffix("-instruct"))
