"""A Grounding DINO of 170,000 random parameters, saved as a checkpoint, and pictures for it."""

from __future__ import annotations

import io
import string
from pathlib import Path

from PIL import Image

MAX_TOKENS = 32  # of a prompt
_WORDS = ["the", "a", "red", "green", "blue", "square", "circle", "star", "cat", "dog", "left", "of", "over"]
_PLACES = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def save_tiny_dino(folder: Path) -> str:
    """Write the checkpoint and return its address. Separators stand where the model's code has them fixed."""
    import torch
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    signs = string.ascii_lowercase + string.digits + "'-[],"
    vocabulary = [_PLACES.get(i, f"[unused{i}]") for i in range(1040)]
    vocabulary += [*_WORDS, *signs, *(f"##{sign}" for sign in signs)]
    listed = folder / "vocab.txt"
    listed.write_text("\n".join(dict.fromkeys(vocabulary)))
    stages = {"out_features": ["stage2", "stage3", "stage4"], "out_indices": [2, 3, 4]}
    backbone = SwinConfig(
        image_size=64, window_size=2, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], **stages
    )
    text = {
        "model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16,
        num_queries=5, encoder_n_points=2, decoder_n_points=2, max_text_len=MAX_TOKENS, disable_custom_kernels=True,
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    torch.set_rng_state(state)
    pixels = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    GroundingDinoProcessor(pixels, BertTokenizer(vocab=str(listed))).save_pretrained(folder)
    return str(folder)


def photo(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """A picture with something in it."""
    import numpy as np

    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()
