"""The same global batches on one rank and on two, in real processes over gloo: the same updates.

The batches are made to be uneven: an odd number of episodes, one of which alone has pictures, so that ranks differ in
tokens, in micro-batches and in whether they see pictures at all; steps with fewer episodes than ranks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.learner.settings import BackendSettings, LearnerSettings, LoraSettings, ObjectiveSettings, OptimizerSettings
from tests.integration.actors.learner.episodes import MemoryImages, make_episode, tiny_model
from tests.slow.actors.learner.gang import GIVE_UP_S, Task, run_gang

STEPS = 5
SETTINGS = LearnerSettings(
    max_length=400,
    micro_batch_tokens=90,
    backend=BackendSettings(precision="fp32", timeout_s=120, optimizer=OptimizerSettings(lr=1e-3)),
)
ENGINES = {"plain": ("plain", 0)} | {f"zero{stage}": ("deepspeed", stage) for stage in range(4)}


def on(engine: str, settings: LearnerSettings) -> LearnerSettings:
    kind, stage = ENGINES[engine]
    return replace(settings, backend=replace(settings.backend, kind=kind, zero_stage=stage))


LORA = replace(
    SETTINGS, lora=LoraSettings(rank=4), steps_per_batch=2, objective=ObjectiveSettings(kl="k3", kl_coef=0.1)
)  # whose reference and proximal policy are scored in lock-step, too
FROZEN = replace(SETTINGS, freeze=["vision"], backend=replace(SETTINGS.backend, activation_checkpointing=True))
FULL_KL = replace(SETTINGS, steps_per_batch=2, objective=ObjectiveSettings(kl="k3", kl_coef=0.1))
VARIANTS = {
    **{f"full-{engine}": on(engine, SETTINGS) for engine in ENGINES},
    **{f"lora-{engine}": on(engine, LORA) for engine in ENGINES},
    **{f"frozen-{engine}": on(engine, FROZEN) for engine in ("plain", "zero2", "zero3")},
    "kl-zero3": on("zero3", FULL_KL),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, Path]:
    """Ranks -> the folder that they left."""
    from transformers import AutoConfig

    root = tmp_path_factory.mktemp("ranks")
    model = tiny_model(root / "model")
    images, token = MemoryImages(), AutoConfig.from_pretrained(model).image_token_id

    def group(seed: int, pictures: set[int], n: int):
        return [
            make_episode(images, token, seed + i, float(i % 2), turns=1 + (seed + i) % 3, pictures=i in pictures)
            for i in range(n)
        ]

    # steps that differ in who sees pictures: one episode, some, all, none, and two episodes for two ranks' two steps
    steps = [
        [group(0, {1}, 4), group(10, set(), 3)],
        [group(20, {0, 2}, 4), group(30, {0, 1, 2}, 3)],
        [group(40, {0, 1, 2, 3}, 4), group(50, {0, 1, 2}, 3)],
        [group(60, set(), 4), group(70, set(), 3)],
        [group(80, {1}, 2)],
    ]
    assert len(steps) == STEPS
    tasks = {name: Task(settings, steps) for name, settings in VARIANTS.items()}
    return {world: run_gang(world, str(model), tasks, images, root / str(world)) for world in (1, 2)}


def result(folder: Path, variant: str) -> dict:
    failures = "\n".join(file.read_text() for file in sorted(folder.glob("*.failed")))
    assert (folder / f"{variant}.pt").exists(), f"no result of {variant}\n{failures}"
    return torch.load(folder / f"{variant}.pt")


@pytest.mark.timeout(2 * GIVE_UP_S)
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_make_the_updates_of_one(variant, trained):
    one, two = (result(trained[world], variant) for world in (1, 2))
    assert one["before"].keys() == two["before"].keys()
    assert all(torch.equal(one["before"][n], two["before"][n]) for n in one["before"])
    for alone, together in zip(one["stats"], two["stats"], strict=True):
        for count in ("tokens", "sequences", "step", "batch_sequences"):
            assert alone[count] == together[count]
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-3, abs=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    apart = sum(float((two["after"][n] - one["after"][n]).square().sum()) for n in one["after"]) ** 0.5
    moved = sum(float((one["after"][n] - one["before"][n]).square().sum()) for n in one["after"]) ** 0.5
    assert moved > 0
    print(f"{variant}: updates differ by {apart / moved:.1e}")
    assert apart / moved <= 1e-3


@pytest.mark.timeout(2 * GIVE_UP_S)
@pytest.mark.parametrize("kind", ["full", "lora", "frozen"])
def test_all_engines_make_the_same_updates_on_two_ranks(kind, trained):
    plain = result(trained[2], f"{kind}-plain")
    moved = sum(float((plain["after"][n] - plain["before"][n]).square().sum()) for n in plain["after"]) ** 0.5
    for variant in (name for name in VARIANTS if name.startswith(f"{kind}-")):
        other = result(trained[2], variant)["after"]
        apart = sum(float((other[n] - plain["after"][n]).square().sum()) for n in other) ** 0.5
        assert apart / moved <= 1e-3, variant
