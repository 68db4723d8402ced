"""Image bytes to what the vision tower reads, with the model's own Hugging Face image processor, each image once."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.agent.seams import ImageStore
from actors.agent.trajectory import ImageRef

if TYPE_CHECKING:
    import torch

CACHE_BYTES = 4 << 30  # of pixel values that a process keeps: 400 pictures of 0.9 megapixels in bfloat16


class Pixels:
    """Pixel values and grids by image reference; the least recently used ones are dropped beyond `capacity` bytes.

    `get(ref)` -> (pixel_values[patches, patch_dim] in `dtype`, grid_thw int64[3]); raises what the store raises.
    """

    def __init__(
        self, image_processor: Any, images: ImageStore, capacity: int = CACHE_BYTES, dtype: str = "float32"
    ) -> None:
        """`dtype` is torch's name of what is kept: bfloat16 halves the memory where the model reads that anyway."""
        self._processor = image_processor
        self._images = images
        self._capacity = capacity
        self._dtype = dtype
        self._cache: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._held = 0  # bytes of it

    @classmethod
    def load(
        cls, model_folder: str | Path, images: ImageStore, capacity: int = CACHE_BYTES, dtype: str = "float32"
    ) -> Pixels:
        from transformers import AutoImageProcessor

        return cls(AutoImageProcessor.from_pretrained(model_folder), images, capacity, dtype)

    def get(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._cache.get(ref.sha256)
        if found is None:
            found = self._process(ref)
            self._cache[ref.sha256] = found
            self._held += found[0].nbytes
            while self._held > self._capacity:
                _, (dropped, _) = self._cache.popitem(last=False)
                self._held -= dropped.nbytes
        else:
            self._cache.move_to_end(ref.sha256)
        return found

    def _process(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        import torch
        from PIL import Image

        with Image.open(io.BytesIO(self._images.get(ref))) as picture:
            out = self._processor(images=[picture.convert("RGB")], return_tensors="pt")
        return out["pixel_values"].to(getattr(torch, self._dtype)), out["image_grid_thw"][0]

    def n_tokens(self, ref: ImageRef) -> int:
        """Expanded length of this image's placeholder. Needs only the size, not the bytes."""
        return count_image_tokens(self._processor, ref.width, ref.height)


def count_image_tokens(image_processor: Any, width: int, height: int) -> int:
    """Tokens of one image of this size after patching and merging, as the model's own processor counts them.

    Raise `ValueError` for a picture that the processor refuses (Qwen's: one side more than 200 times the other).
    """
    patches = image_processor.get_number_of_image_patches(height, width, {})
    return int(patches) // image_processor.merge_size**2
