"""A checkpoint goes on with another number of ranks, and at another ZeRO stage, as if nothing had happened.

Two steps on one rank, two on two, two on one again, against six without a break; in real processes over gloo. The rate
falls from step to step, so that a count of steps that was lost would show.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.learner.settings import BackendSettings, LearnerSettings, OptimizerSettings
from tests.integration.actors.learner.episodes import MemoryImages, make_episode, tiny_model
from tests.slow.actors.learner.gang import GIVE_UP_S, Task, run_gang

pytestmark = pytest.mark.timeout(3 * GIVE_UP_S)

SETTINGS = LearnerSettings(
    max_length=400,
    micro_batch_tokens=90,
    backend=BackendSettings(
        precision="fp32",
        timeout_s=120,
        optimizer=OptimizerSettings(lr=1e-3, schedule="hold_then_decay", hold_steps=3),
    ),
)
# name -> the engine of each part
ENGINES = {
    "plain": (("plain", 0),) * 3,
    "zero0": (("deepspeed", 0),) * 3,
    "zero2": (("deepspeed", 2),) * 3,
    "zero3": (("deepspeed", 3),) * 3,
    "mixed": (("deepspeed", 3), ("deepspeed", 1), ("deepspeed", 0)),
}
WORLDS = (1, 2, 1)
FULL = "a-full-disk"


def on(engine: tuple[str, int]) -> LearnerSettings:
    kind, stage = engine
    return replace(SETTINGS, backend=replace(SETTINGS.backend, kind=kind, zero_stage=stage))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[Path]:
    """The folders that the three parts left; the run without a break is in the first one."""
    from transformers import AutoConfig

    root = tmp_path_factory.mktemp("other-ranks")
    model = tiny_model(root / "model")
    images, token = MemoryImages(), AutoConfig.from_pretrained(model).image_token_id

    def group(seed: int, pictures: set[int], n: int):
        return [
            make_episode(images, token, seed + i, float(i % 2), turns=1 + (seed + i) % 3, pictures=i in pictures)
            for i in range(n)
        ]

    steps = [[group(10 * i, {i % 3}, 4), group(10 * i + 5, set(), 3)] for i in range(6)]
    folders: list[Path] = []
    for part, world in enumerate(WORLDS):
        tasks = {
            name: Task(
                on(engines[part]),
                steps[2 * part : 2 * part + 2],
                load=str(root / f"{name}-{part - 1}") if part else "",
                save=str(root / f"{name}-{part}"),
            )
            for name, engines in ENGINES.items()
        }
        if part == 0:
            tasks |= {f"{name}-unbroken": Task(on(engines[0]), steps) for name, engines in ENGINES.items()}
        if world == 2:
            tasks[FULL] = Task(on(("deepspeed", 3)), steps[:1], save=str(root / FULL), full_disk_of=1)
        folders.append(run_gang(world, str(model), tasks, images, root / str(part)))
    return folders


def result(folder: Path, name: str) -> dict:
    failures = "\n".join(file.read_text() for file in sorted(folder.glob("*.failed")))
    assert (folder / f"{name}.pt").exists(), f"no result of {name}\n{failures}"
    return torch.load(folder / f"{name}.pt")


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_that_changes_its_ranks_twice_makes_the_updates_of_one_that_never_stopped(name, parts):
    unbroken = result(parts[0], f"{name}-unbroken")
    first, second, third = (result(folder, name) for folder in parts)
    for before, after in ((first, second), (second, third)):
        assert all(torch.equal(before["after"][n], after["before"][n]) for n in before["after"])
    made = [*first["stats"], *second["stats"], *third["stats"]]
    assert [step["step"] for step in made] == [1, 2, 3, 4, 5, 6]
    for alone, broken in zip(unbroken["stats"], made, strict=True):
        assert broken["lr"] == alone["lr"]
        assert broken["loss"] == pytest.approx(alone["loss"], rel=1e-3, abs=1e-5)
        assert broken["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    assert len({step["lr"] for step in made}) == 6
    apart = sum(float((third["after"][n] - unbroken["after"][n]).square().sum()) for n in third["after"]) ** 0.5
    moved = sum(float((unbroken["after"][n] - first["before"][n]).square().sum()) for n in third["after"]) ** 0.5
    assert moved > 0
    print(f"{name}: updates differ by {apart / moved:.1e}")
    assert apart / moved <= 1e-3


def test_a_disk_that_is_full_for_one_rank_is_told_by_all_and_none_waits(parts):
    refused = [(parts[1] / f"{FULL}.rank{rank}.refused").read_text() for rank in (0, 1)]
    assert all("File too large" in told for told in refused)
    assert ["another rank" in told for told in refused] == [True, False]
