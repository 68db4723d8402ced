"""A tiny real Qwen2.5-VL and episodes for it, with pictures and without."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from actors.agent.trajectory import (
    Ending,
    ImageRef,
    PlacedImage,
    RewardParts,
    Segment,
    SegmentKind,
    Trajectory,
    VersionSpan,
    WeightVersion,
)

IMAGE_TOKENS = 16  # of a 112 x 112 picture


class MemoryImages:
    """An ImageStore in a dictionary; it can be pickled."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> ImageRef:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return ImageRef(sha256, 112, 112)

    def get(self, ref: ImageRef) -> bytes:
        return self.blobs[ref.sha256]

    def paint(self, seed: int) -> ImageRef:
        from PIL import Image

        noise = np.random.default_rng(seed).integers(0, 255, (112, 112, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "PNG")
        return self.put(out.getvalue())


def tiny_model(folder: Path) -> Path:
    """Two layers of text, two of vision."""
    from actors.model.tiny import TinySize, save_tiny

    size = TinySize(hidden=64, layers=2, mlp=128, mrope_section=(2, 3, 3), vision_hidden=48, vision_layers=2)
    texts = [f"the red star of city {i} was founded by a person" for i in range(50)]
    return save_tiny(texts, folder, size=size)


def make_episode(
    images: MemoryImages,
    image_token: int,
    seed: int,
    reward: float = 1.0,
    version: int = 0,
    turns: int = 2,
    *,
    pictures: bool = True,
) -> Trajectory:
    """An episode with a picture in its prompt and one per observation, or with none."""
    rng = np.random.default_rng(seed)

    def words(n: int) -> np.ndarray:
        return rng.integers(10, 250, n).astype(np.int32)

    def told(kind: SegmentKind, painted: int) -> Segment:
        ids = words(int(rng.integers(6, 14)))
        if not pictures:
            return Segment(kind, ids)
        ids[2] = image_token
        return Segment(kind, ids, images=(PlacedImage(2, images.paint(painted), IMAGE_TOKENS),))

    segments = [told(SegmentKind.PROMPT, seed % 3)]
    for turn in range(turns):
        n = int(rng.integers(3, 9))
        logprobs = -rng.random(n).astype(np.float32) - 5.0
        spans = (VersionSpan(WeightVersion(version), 0, n),)
        segments.append(Segment(SegmentKind.ACTION, words(n), logprobs, spans))
        if turn < turns - 1:
            segments.append(told(SegmentKind.OBSERVATION, seed % 5))
    parts = RewardParts(reward, reward, 1.0, 1.0, turns - 1)
    return Trajectory(f"q{seed}", seed, tuple(segments), (), Ending.ANSWERED, reward=parts)
