"""One tiny random model and one engine for all tests of the sampler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS
from actors.model.load import load_policy
from actors.model.pixels import Pixels
from actors.model.renderer import ChatRenderer, load_renderer
from actors.model.tiny import TinySize, save_tiny
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings
from tests.integration.actors.sampler.scripted import Pictures


def engine_settings(dtype: str) -> EngineSettings:
    """Small, with little KV cache, on one thread."""
    return EngineSettings(
        dtype=dtype,
        max_model_len=2048,
        max_num_seqs=32,
        max_num_batched_tokens=2048,
        kv_cache_bytes=128 << 20,
        update_timeout_s=60,
        answer_timeout_s=5,
    )


TEXTS = [preset.opening + preset.after_image + preset.after_text for preset in PRESETS.values()]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(TEXTS, tmp_path_factory.mktemp("sampler") / "tiny", tags=TAGS, seed=1)


@pytest.fixture(scope="session")
def calm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller random weights, for bf16. At the default scale an untrained model turns bf16's rounding alone into
    log-prob differences of 1e-2 (transformers in bf16 against itself in fp32); a trained one does not."""
    size = TinySize(initializer_range=0.03)
    return save_tiny(TEXTS, tmp_path_factory.mktemp("sampler") / "calm", tags=TAGS, size=size, seed=1)


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return Pictures(8)


@pytest.fixture(scope="session")
def renderer(model_folder: Path) -> ChatRenderer:
    return load_renderer(model_folder)


@pytest.fixture(scope="session")
def pixels(model_folder: Path, pictures: Pictures) -> Pixels:
    return Pixels.load(model_folder, pictures)


@pytest.fixture(scope="session")
def policy(model_folder: Path) -> torch.nn.Module:
    """The learner's side: the same weights in transformers, float32."""
    return load_policy(model_folder, "float32").eval()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(model_folder: Path, renderer: ChatRenderer, pictures: Pictures) -> AsyncIterator[Engine]:
    async with Engine(model_folder, engine_settings("float32"), renderer, pictures) as running:
        yield running
