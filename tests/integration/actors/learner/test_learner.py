"""A learner from episodes to published weights, alone and as Ray actors."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.agent.trajectory import Failure
from actors.learner.learner import NOTHING, Learner
from actors.learner.objective import PolicyObjective
from actors.learner.settings import (
    BackendSettings,
    CorrectionSettings,
    LearnerSettings,
    LoraSettings,
    ObjectiveSettings,
    OptimizerSettings,
)
from actors.model.load import check_model_folder, load_policy
from actors.weights.manifest import verify
from actors.weights.transport import FolderTransport
from cluster.errors import UserError
from cluster.storage import Folder

SETTINGS = LearnerSettings(
    max_length=400,
    micro_batch_tokens=400,
    backend=BackendSettings(precision="fp32", optimizer=OptimizerSettings(lr=1e-3)),
)


@pytest.fixture(scope="module")
def groups(make_episode):
    return [[make_episode(10 * g + i, reward=float(i % 2), version=2 + i % 2) for i in range(4)] for g in range(3)]


@pytest.fixture
def make_learner(tiny_folder, images, tmp_path):
    def make(settings: LearnerSettings = SETTINGS, name: str = "weights") -> Learner:
        return Learner(str(tiny_folder), settings, images, str(tmp_path / name))

    return make


def published(learner: Learner, version: int) -> dict[str, torch.Tensor]:
    ticket = learner.publish(version)
    assert ticket is not None
    return dict(FolderTransport(Path(ticket.folder)).receive(ticket))


def test_episodes_become_an_update_and_a_folder_that_a_model_loads_from(make_learner, groups, tiny_folder):
    learner = make_learner()
    before = published(learner, 3)
    stats = learner.train(groups, version=3)
    ticket = learner.publish(4)
    assert ticket is not None
    verify(ticket, {name: tuple(tensor.shape) for name, tensor in before.items()})
    assert stats.step == 1
    assert stats.sequences == 12
    numbers = stats.numbers()
    assert numbers["batch_staleness_max"] == 1
    assert numbers["skipped"] == 0
    assert numbers["tokens"] == sum(t.sampled_tokens for group in groups for t in group)
    after = dict(FolderTransport(Path(ticket.folder)).receive(ticket))
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert set(after) == {name for name, _ in load_policy(tiny_folder).named_parameters()}
    learner.close()


def test_a_batch_with_nothing_to_teach_makes_no_step(make_learner, groups, make_episode):
    learner = make_learner()
    before = published(learner, 0)
    flat = [[make_episode(i, reward=1.0) for i in range(3)]]
    broken = [[replace(make_episode(i, reward=float(i)), failure=Failure.INFRA) for i in range(3)]]
    for batch in ([], flat, broken, flat + broken):
        stats = learner.train(batch, version=0)
        assert stats.skipped == NOTHING
    assert learner.train(groups, version=3).step == 1
    assert any(not torch.equal(t, before[n]) for n, t in published(learner, 1).items())


def test_flat_groups_count_and_carry_the_divergence_where_they_are_not_filtered(make_learner, groups, make_episode):
    flat = [make_episode(50 + i, reward=1.0) for i in range(4)]
    settings = replace(SETTINGS, objective=ObjectiveSettings(kl="k3"))
    without, kept = make_learner(settings), make_learner(replace(settings, flat_groups=True), "kept")
    for learner in (without, kept):  # away from the reference, and alike
        learner.train(groups, version=3)
    one, other = (learner.train([*groups, flat], version=3) for learner in (without, kept))
    assert other.tokens == one.tokens + sum(t.sampled_tokens for t in flat)
    assert (one.metrics["batch_filtered_zero_variance"], other.metrics["batch_filtered_zero_variance"]) == (1, 0)
    assert other.metrics["kl_reference"] != pytest.approx(one.metrics["kl_reference"], rel=1e-6)
    assert 0 < abs(other.grad_norm) < abs(one.grad_norm)  # the same gains, shared by more tokens


def test_several_steps_of_one_batch_clip_against_where_they_began_and_are_told_together(make_learner, groups):
    learner = make_learner(replace(SETTINGS, steps_per_batch=3))
    stats = learner.train(groups, version=3)
    assert stats.step == 3
    assert stats.sequences == 12
    assert stats.tokens == stats.metrics["tokens"] == sum(t.sampled_tokens for group in groups for t in group)
    assert (stats.skipped, stats.metrics["steps_skipped"]) == ("", 0)
    assert stats.metrics["ratio_max"] > 1.0


def test_a_step_that_was_refused_is_told_though_others_follow(make_learner, groups, monkeypatch):
    learner = make_learner(replace(SETTINGS, steps_per_batch=3))
    train_batch, steps = learner._backend.train_batch, []

    class Poisoned(PolicyObjective):
        def __call__(self, current, batch, counts):
            terms = super().__call__(current, batch, counts)
            return replace(terms, loss=terms.loss * float("nan"))

    def first_poisoned(batches, objective):
        steps.append(len(batches))
        return train_batch(batches, Poisoned(objective.settings) if len(steps) == 1 else objective)

    monkeypatch.setattr(learner._backend, "train_batch", first_poisoned)
    stats = learner.train(groups, version=3)
    assert stats.step == 2
    assert "not finite" in stats.skipped
    assert stats.numbers()["steps_skipped"] == stats.numbers()["skipped"] == 1
    assert stats.grad_norm < float("inf")


@pytest.mark.parametrize("proximal", ["learner", "behaviour"])
def test_the_micro_batches_of_one_step_are_there_at_a_time(make_learner, groups, monkeypatch, proximal):
    import actors.learner.learner as module

    correction = CorrectionSettings(level="token" if proximal == "learner" else "none")
    objective = ObjectiveSettings(proximal=proximal, correction=correction)
    learner = make_learner(replace(SETTINGS, steps_per_batch=3, objective=objective))
    made: list[weakref.ref] = []
    there: list[bool] = []
    to_micro_batches, backend = module.to_micro_batches, learner._backend

    def watched(*arguments):
        batches = to_micro_batches(*arguments)
        made.extend(map(weakref.ref, batches))
        return batches

    def alone(call):
        def look(batches, *arguments, **named):
            there.append(sum(ref() is not None for ref in made) == len(batches))
            return call(batches, *arguments, **named)

        return look

    monkeypatch.setattr(module, "to_micro_batches", watched)
    monkeypatch.setattr(backend, "train_batch", alone(backend.train_batch))
    monkeypatch.setattr(backend, "logprobs", alone(backend.logprobs))
    stats = learner.train(groups, version=3)
    assert there == [True] * (6 if proximal == "learner" else 3)
    assert stats.step == 3


def test_pictures_are_kept_in_the_precision_that_the_model_reads(make_learner):
    assert make_learner()._pixels._dtype == "float32"
    bf16 = replace(SETTINGS, backend=replace(SETTINGS.backend, precision="bf16"))
    assert make_learner(bf16, "bf16")._pixels._dtype == "bfloat16"


def test_the_divergence_from_the_start_is_measured(make_learner, groups):
    settings = replace(SETTINGS, objective=ObjectiveSettings(kl="k3"))
    learner = make_learner(settings)
    first, second = (learner.train(groups, version=3).metrics["kl_reference"] for _ in range(2))
    assert first == pytest.approx(0, abs=1e-6)
    assert second > 1e-5


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The models that a learner and its reference load, by name of the function's module."""
    import actors.learner.learner as learner_module
    import actors.learner.reference as reference_module

    seen: list[str] = []
    for module in (learner_module, reference_module):

        def load(*arguments, name=module.__name__):
            seen.append(name)
            return load_policy(*arguments)

        monkeypatch.setattr(module, "load_policy", load)
    return seen


@pytest.mark.parametrize("kind", ["plain", "deepspeed"])
def test_lora_measures_its_divergence_without_a_second_copy(kind, make_learner, groups, loaded, tmp_path):
    settings = replace(
        SETTINGS, lora=LoraSettings(rank=4), objective=ObjectiveSettings(kl="k3"),
        backend=replace(SETTINGS.backend, kind=kind, optimizer=OptimizerSettings(lr=1e-2)),
    )  # fmt: skip
    learner = make_learner(settings)
    first, second, third = (learner.train(groups, version=3).metrics["kl_reference"] for _ in range(3))
    assert first == pytest.approx(0, abs=1e-6)
    assert third > second > 1e-5
    assert loaded == ["actors.learner.learner"]
    learner.export(str(tmp_path / "model"))
    check_model_folder(tmp_path / "model")
    expected = published(learner, 3)
    assert all(torch.equal(t, expected[n]) for n, t in load_policy(tmp_path / "model").named_parameters())
    # whoever starts from the export measures from there
    full = replace(settings, lora=None)
    other = Learner(str(tmp_path / "model"), full, learner._pixels._images, str(tmp_path / "other"))
    assert other.train(groups, version=3).metrics["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert loaded[1:] == ["actors.learner.learner", "actors.learner.reference"]


def test_a_checkpoint_is_continued_in_the_same_parts_alone(make_learner, groups, tmp_path):
    lora = replace(SETTINGS, lora=LoraSettings(rank=4))
    learner = make_learner(lora)
    learner.train(groups, version=3)
    learner.save(str(tmp_path / "checkpoint"))
    learner.train(groups, version=3)
    other = make_learner(lora, "other")
    other.load(str(tmp_path / "checkpoint"))
    other.train(groups, version=3)
    expected = published(learner, 2)
    assert all(torch.equal(t, expected[n]) for n, t in published(other, 2).items())
    for wrong in (SETTINGS, replace(SETTINGS, lora=LoraSettings(rank=8)), replace(lora, freeze=["vision"])):
        with pytest.raises(UserError, match=r"has (lora|freeze) .*, this run has"):
            make_learner(wrong, "wrong").load(str(tmp_path / "checkpoint"))


def test_a_killed_learner_continues_where_it_was_saved(make_learner, groups, tmp_path):
    learner = make_learner()
    learner.train(groups, version=3)
    learner.save(str(tmp_path / "checkpoint"))
    learner.train(groups, version=3)
    other = make_learner(name="other")
    other.load(str(tmp_path / "checkpoint"))
    assert other.train(groups, version=3).step == 2
    expected = published(learner, 2)
    assert all(torch.allclose(t, expected[n], atol=1e-7) for n, t in published(other, 2).items())
    plain = replace(SETTINGS, backend=replace(SETTINGS.backend, kind="plain"))
    with pytest.raises(UserError, match="kind deepspeed"):
        make_learner(plain, "third").load(str(tmp_path / "checkpoint"))
    with pytest.raises(UserError, match="no learner checkpoint"):
        other.load(str(tmp_path / "nowhere"))


def test_checkpoints_and_exports_go_to_object_storage(make_learner, groups, s3_bucket, tmp_path, monkeypatch):
    learner = make_learner()
    learner.train(groups, version=3)
    learner.save(f"{s3_bucket}/checkpoint")
    learner.export(f"{s3_bucket}/model")
    other = make_learner(name="other")
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "download", None)  # eight ranks of a 7B model would fill the disk with 800 GB
        other.load(f"{s3_bucket}/checkpoint")
    expected = published(learner, 1)
    assert all(torch.equal(t, expected[n]) for n, t in published(other, 1).items())
    exported = load_policy(f"{s3_bucket}/model")
    assert all(torch.equal(t, expected[n]) for n, t in exported.named_parameters())


async def test_the_ray_actor_takes_references_and_returns_tickets(ray_cluster, tiny_folder, images, groups, tmp_path):
    import ray

    from actors.learner.actor import LearnerRanks

    learner = LearnerRanks.start(str(tiny_folder), SETTINGS, images, str(tmp_path / "weights"))
    await learner.ready()
    payload = [[ray.put(trajectory) for trajectory in group] for group in groups]
    stats = await learner.train(payload, 3)
    ticket = await learner.publish(4)
    verify(ticket)
    assert (stats.step, stats.sequences, ticket.version) == (1, 12, 4)
    await learner.export(str(tmp_path / "model"))
    check_model_folder(tmp_path / "model")
    await learner.close()
    assert not (tmp_path / "weights").exists()


def gangs(state: str) -> list[dict[str, Any]]:
    """Placement groups of the cluster that are in this state."""
    import ray

    return [group for group in ray.util.placement_group_table().values() if group["state"] == state]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.05)


async def test_ranks_have_places_all_together_or_none(ray_cluster, tiny_folder, images, tmp_path):
    """Three where there is room for two: those two CPUs stay free for others."""
    import ray

    from actors.learner.actor import LearnerRanks

    @ray.remote(num_cpus=2)
    def both() -> bool:
        return True

    three = LearnerRanks.start(str(tiny_folder), SETTINGS, images, str(tmp_path / "weights"), world=3)
    try:
        with pytest.raises(UserError, match=r"The learner did not start within 1 s: 2 of the cluster's 2 CPU are free"):
            async with ray_cluster.starting("The learner", 1.0):
                await three.ready()
        assert len(gangs("PENDING")) == 1
        assert await asyncio.wait_for(both.remote(), 60)
    finally:
        await asyncio.wait_for(three.close(), 5)  # nobody is there who would answer
    await until(lambda: not gangs("PENDING"))


@pytest.mark.slow  # two gangs, one after the other
@pytest.mark.parametrize("stage", [1])
async def test_two_ranks_make_the_update_of_one(
    stage, ray_cluster, tiny_folder, images, groups, tmp_path, make_learner
):
    """An odd number of episodes, so that the ranks differ in tokens and in micro-batches."""
    from actors.learner.actor import LearnerRanks

    odd = [groups[0][:3], *groups[1:]]
    settings = replace(SETTINGS, micro_batch_tokens=150, backend=replace(SETTINGS.backend, zero_stage=stage))
    two = LearnerRanks.start(str(tiny_folder), settings, images, str(tmp_path / "two"), world=2)
    await two.ready()
    (gang,) = gangs("CREATED")
    assert (gang["strategy"], list(gang["bundles"].values())) == ("PACK", [{"CPU": 1.0}, {"CPU": 1.0}])
    stats = await two.train(odd, 3)
    ticket = await two.publish(4)
    got = dict(FolderTransport(Path(ticket.folder)).receive(ticket))
    await two.close()
    await until(lambda: not gangs("CREATED"))

    one = make_learner(name="one")
    before = published(one, 3)
    alone = one.train(odd, version=3)
    after = published(one, 4)
    assert (stats.tokens, stats.sequences) == (alone.tokens, alone.sequences)
    assert stats.loss == pytest.approx(alone.loss, rel=1e-4)
    assert stats.grad_norm == pytest.approx(alone.grad_norm, rel=1e-4)
    apart = sum(float((got[n] - after[n]).square().sum()) for n in after) ** 0.5
    moved = sum(float((after[n] - before[n]).square().sum()) for n in after) ** 0.5
    assert apart / moved < 1e-3
