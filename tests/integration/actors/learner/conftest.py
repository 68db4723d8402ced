"""A tiny real Qwen2.5-VL and episodes with pictures for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from actors.agent.trajectory import Trajectory
from tests.integration.actors.learner.episodes import MemoryImages, make_episode, tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def images() -> MemoryImages:
    return MemoryImages()


@pytest.fixture(scope="session")
def image_token(tiny_folder) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_folder).image_token_id


@pytest.fixture(scope="session", name="make_episode")
def make_episode_of(images, image_token) -> Callable[..., Trajectory]:
    """(seed, reward, version, turns, pictures) -> an episode."""
    return partial(make_episode, images, image_token)
