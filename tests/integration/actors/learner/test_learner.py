"""A learner from episodes to published weights, alone and as Ray actors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.agent.trajectory import Failure
from actors.learner.learner import NOTHING, Learner
from actors.learner.settings import BackendSettings, LearnerSettings, LoraSettings, ObjectiveSettings, OptimizerSettings
from actors.model.load import check_model_folder, load_policy
from actors.weights.manifest import verify
from actors.weights.transport import FolderTransport
from cluster.errors import UserError

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


def test_several_steps_of_one_batch_clip_against_where_they_began(make_learner, groups):
    learner = make_learner(replace(SETTINGS, steps_per_batch=3))
    stats = learner.train(groups, version=3)
    assert stats.step == 3
    assert stats.sequences == 4
    assert stats.metrics["ratio_max"] > 1.0


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


def test_checkpoints_and_exports_go_to_object_storage(make_learner, groups, s3_bucket, tmp_path):
    learner = make_learner()
    learner.train(groups, version=3)
    learner.save(f"{s3_bucket}/checkpoint")
    learner.export(f"{s3_bucket}/model")
    other = make_learner(name="other")
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
    stats = await two.train(odd, 3)
    ticket = await two.publish(4)
    got = dict(FolderTransport(Path(ticket.folder)).receive(ticket))
    await two.close()

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
