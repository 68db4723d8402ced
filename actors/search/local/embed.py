"""Pictures to vectors of unit length, by any CLIP-like model of transformers that lies in a folder.

CLIP and SigLIP give image features; a vision model alone (ViT, DINOv2) gives its pooled output, or the mean over its
patches where it has none. Weights are read from safetensors only, and no code of a model folder is ever run.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.errors import UserError
from cluster.storage import Folder

FloatVectors = NDArray[np.float32]
_SMALL_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")


class Embedder(Protocol):
    """`name`: for people. `digest`: equal for two embedders only if they give the same vectors."""

    name: str

    @property
    def digest(self) -> str: ...

    def embed(self, pictures: Sequence[Image.Image]) -> FloatVectors:
        """[pictures, dim], each row of length 1. Any number of threads may call it."""
        ...


class ModelEmbedder:
    """A model folder of transformers. `device`: cpu, cuda, cuda:1, ..., or auto (cuda where there is one).

    Loaded at the first use. `batch`: pictures in one forward pass. Raises UserError, there, for what is no such model.
    """

    def __init__(self, model: str, device: str = "auto", batch: int = 32) -> None:
        if batch < 1:
            raise UserError(f"The embedding batch is {batch} and must be at least 1.")
        self.name = model
        self._device, self._batch = device, batch
        self._loaded: tuple[Any, Any, str] | None = None  # model, processor, device
        self._loading = threading.Lock()

    @property
    def digest(self) -> str:
        return model_digest(self.name)

    def embed(self, pictures: Sequence[Image.Image]) -> FloatVectors:
        import torch

        model, processor, device = self._load()
        parts: list[FloatVectors] = []
        for start in range(0, len(pictures), self._batch):
            images = [picture.convert("RGB") for picture in pictures[start : start + self._batch]]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                features = _features(model, pixels.to(device=device, dtype=model.dtype))
            parts.append(unit_rows(features.float().cpu().numpy()))
        if not parts:
            raise ValueError("there is no picture to embed")
        return np.concatenate(parts)

    def _load(self) -> tuple[Any, Any, str]:
        with self._loading:
            if self._loaded is None:
                self._loaded = _loaded(self.name, self._device)
            return self._loaded


def model_digest(model: str) -> str:
    """Of a model folder: its configurations, and names, sizes and ends of its weights. Raises UserError."""
    folder = _model_folder(model)
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    digest.update(Folder(folder).fingerprint(".safetensors").encode())
    return digest.hexdigest()


def unit_rows(vectors: np.ndarray) -> FloatVectors:
    """[n, dim] float32, each row of length 1; a row of zeros stays one and is near to nothing. Raises ValueError."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"vectors have the shape {rows.shape}, and [n, dim] is needed")
    if not np.isfinite(rows).all():
        raise ValueError("vectors hold values that are not finite")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def dimension(embedder: Embedder) -> int:
    """How many numbers its vectors have; found by embedding a grey square."""
    return embedder.embed([Image.new("RGB", (32, 32), "grey")]).shape[1]


def _loaded(name: str, wanted: str) -> tuple[Any, Any, str]:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    folder = _model_folder(name)
    device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {wanted!r}, and there is no CUDA device on this machine.")
    try:
        kwargs: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        processor = AutoImageProcessor.from_pretrained(folder, **kwargs)
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **kwargs)
        return model.eval().requires_grad_(False).to(device), processor, device
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"The model at {folder} cannot be used for pictures: {line}.") from error


def _features(model: Any, pixels: Any) -> Any:
    """[batch, dim]; what the kinds of models call it. A pooled output of transformers 5 comes in a record."""
    get = getattr(model, "get_image_features", None)
    found = get(pixel_values=pixels) if get is not None else model(pixel_values=pixels)
    if hasattr(found, "shape"):
        return found
    pooled = getattr(found, "pooler_output", None)
    if pooled is None:
        pooled = found.last_hidden_state.mean(dim=1)
    return pooled.flatten(1)  # ResNets leave two sides of 1


def _model_folder(model: str) -> Path:
    folder = Folder(model)
    if not folder.is_local or not (folder.local_path / "config.json").is_file():
        raise UserError(f"There is no model at {model}: give a local folder with config.json and safetensors files.")
    return folder.local_path
