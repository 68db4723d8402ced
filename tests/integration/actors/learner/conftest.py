"""A tiny real Qwen2.5-VL and episodes with pictures for it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    from actors.model.tiny import TinySize, save_tiny

    size = TinySize(hidden=64, layers=2, mlp=128, mrope_section=(2, 3, 3), vision_hidden=48, vision_layers=2)
    texts = [f"the red star of city {i} was founded by a person" for i in range(50)]
    return save_tiny(texts, tmp_path_factory.mktemp("tiny"), size=size)


@pytest.fixture(scope="session")
def images() -> MemoryImages:
    return MemoryImages()


@pytest.fixture(scope="session")
def image_token(tiny_folder) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_folder).image_token_id


@pytest.fixture(scope="session")
def make_episode(images, image_token) -> Callable[..., Trajectory]:
    """(seed, reward, version, turns) -> an episode with a picture in its prompt and one per observation."""

    def words(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.integers(10, 250, n).astype(np.int32)

    def with_picture(kind: SegmentKind, rng: np.random.Generator, seed: int) -> Segment:
        ids = words(rng, int(rng.integers(6, 14)))
        ids[2] = image_token
        return Segment(kind, ids, images=(PlacedImage(2, images.paint(seed), IMAGE_TOKENS),))

    def make(seed: int, reward: float = 1.0, version: int = 0, turns: int = 2) -> Trajectory:
        rng = np.random.default_rng(seed)
        segments = [with_picture(SegmentKind.PROMPT, rng, seed % 3)]
        for turn in range(turns):
            n = int(rng.integers(3, 9))
            logprobs = -rng.random(n).astype(np.float32) - 5.0
            spans = (VersionSpan(WeightVersion(version), 0, n),)
            segments.append(Segment(SegmentKind.ACTION, words(rng, n), logprobs, spans))
            if turn < turns - 1:
                segments.append(with_picture(SegmentKind.OBSERVATION, rng, seed % 5))
        parts = RewardParts(reward, reward, 1.0, 1.0, turns - 1)
        return Trajectory(f"q{seed}", seed, tuple(segments), (), Ending.ANSWERED, reward=parts)

    return make
