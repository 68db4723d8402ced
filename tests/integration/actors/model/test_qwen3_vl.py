"""A tiny Qwen3-VL through the real loop: vLLM plays episodes with several pictures, the learner scores every token as
the engine did, makes a step, and the engine goes on with what it published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from actors.agent.protocol import TAGS
from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, RewardParts, Trajectory
from actors.learner.learner import Learner
from actors.learner.settings import BackendSettings, LearnerSettings, OptimizerSettings
from actors.model.load import check_model_folder, load_policy, parameter_shapes
from actors.model.pixels import Pixels
from actors.model.renderer import ChatRenderer, load_renderer
from actors.model.tiny import QWEN3, save_tiny
from actors.sampler.engine import Engine
from actors.weights.manifest import verify
from tests.integration.actors.sampler.conftest import TEXTS, engine_settings
from tests.integration.actors.sampler.scripted import Pictures
from tests.integration.actors.sampler.test_engine import learner_logprobs, play

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240, func_only=True)]

SHORT = Sampling(max_tokens=24)
ALIKE = 1e-5  # mean difference of log-probs in fp32, as for Qwen2.5-VL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(TEXTS, tmp_path_factory.mktemp("qwen3") / "tiny", tags=TAGS, size=QWEN3, seed=1)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Of different grids, so that a position or a picture in the wrong place is seen."""
    mixed = Pictures(3, size=(112, 84))
    for size in ((200, 60), (60, 200), (128, 128)):
        for ref in (more := Pictures(2, size=size)).refs:
            mixed.refs.append(mixed.put(more.get(ref)))
    return mixed


@pytest.fixture(scope="module")
def renderer(folder: Path) -> ChatRenderer:
    return load_renderer(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(folder: Path, renderer: ChatRenderer, pictures: Pictures) -> AsyncIterator[Engine]:
    async with Engine(folder, engine_settings("float32"), renderer, pictures) as running:
        yield running


async def played(engine: Engine, renderer: ChatRenderer, pictures: Pictures) -> list[Trajectory]:
    """Eight episodes, each of four pictures in another order."""
    rotated = [pictures.refs[i:] + pictures.refs[:i] for i in range(8)]
    episodes = await asyncio.gather(*(play(engine, renderer, refs, SHORT) for refs in rotated))
    return [
        Trajectory("q", i, tuple(segments), (), Ending.ANSWERED, reward=RewardParts(i % 2, i % 2, 1.0, 1.0, 2))
        for i, segments in enumerate(episodes)
    ]


def difference(folder: Path, renderer: ChatRenderer, pictures: Pictures, episodes: list[Trajectory]) -> float:
    """Mean |learner - engine| over the sampled tokens, the learner's weights being those in `folder`."""
    policy = load_policy(folder, "float32").eval()
    pixels = Pixels.load(folder, pictures)
    ours, theirs = learner_logprobs(policy, pixels, renderer, [list(it.segments) for it in episodes], 1.0)
    assert len(ours) > 200
    return float(np.abs(ours - theirs).mean())


async def test_what_was_sampled_is_learned_published_and_sampled_again(engine, renderer, pictures, folder, tmp_path):
    first = await played(engine, renderer, pictures)
    assert difference(folder, renderer, pictures, first) <= ALIKE

    backend = BackendSettings(precision="fp32", zero_stage=2, optimizer=OptimizerSettings(lr=1e-3))
    learner = Learner(
        str(folder),
        LearnerSettings(max_length=2048, threads=1, backend=backend),
        pictures,
        str(tmp_path / "weights"),
    )
    stats = learner.train([first], version=0)
    assert (stats.skipped, stats.sequences, stats.step) == ("", 8, 1)
    assert stats.metrics["batch_malformed"] == 0
    ticket = learner.publish(1)
    assert ticket is not None
    verify(ticket, parameter_shapes(folder))
    await engine.update(ticket.folder, ticket.version)

    second = await played(engine, renderer, pictures)
    assert {version for episode in second for version in episode.versions} == {1}
    learner.export(str(tmp_path / "export"))
    check_model_folder(tmp_path / "export")
    assert difference(tmp_path / "export", renderer, pictures, second) <= ALIKE
    assert difference(folder, renderer, pictures, second) > 100 * ALIKE  # the step can be seen
    moved = dict(load_policy(tmp_path / "export").named_parameters())
    still = [name for name, was in load_policy(folder).named_parameters() if torch.equal(was, moved[name])]
    assert still == []  # deep features of the tower included
    learner.close()
