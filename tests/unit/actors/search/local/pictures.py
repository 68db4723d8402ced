"""What the tests of the local image engines share: pictures, an embedder of ten lines, and tiny real models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.search.local.embed import unit_rows


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of large soft blots, another for every seed."""
    blots = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


class Shrunk:
    """The pixels of a 4 x 4 thumbnail, less their mean: an embedder that needs no model."""

    def __init__(self, name: str = "shrunk", side: int = 4, digest: str = "d1") -> None:
        self.name, self.digest, self._side = name, digest, side
        self.batches: list[int] = []

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        self.batches.append(len(pictures))
        small = [picture.convert("RGB").resize((self._side, self._side), Image.Resampling.BOX) for picture in pictures]
        rows = np.stack([np.asarray(one, dtype=np.float32).ravel() for one in small])
        return unit_rows(rows - rows.mean(axis=1, keepdims=True))


def tiny_model(folder: Path, kind: str, seed: int = 0) -> str:
    """A random model of transformers with its image processor, saved: clip, siglip, vit or dinov2."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 16, "patch_size": 8}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 10, "max_position_embeddings": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    size = {"height": 16, "width": 16}
    if kind == "clip":
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
        processor = hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    elif kind == "siglip":
        model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
        processor = hf.SiglipImageProcessor(size=size)
    elif kind == "vit":
        model, processor = hf.ViTModel(hf.ViTConfig(**vision)), hf.ViTImageProcessor(size=size)
    else:
        names = {key: value for key, value in vision.items() if key != "intermediate_size"}
        model = hf.Dinov2Model(hf.Dinov2Config(**names))
        processor = hf.BitImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
