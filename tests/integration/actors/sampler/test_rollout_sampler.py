"""Whole episodes on an engine inside a Ray actor: scored, updated, cancelled, and honest when the engine dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from actors.agent.episode import Limits
from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, Failure, Question, SegmentKind, Summary, Trajectory
from actors.model.batch import collate
from actors.model.expansion import expand
from actors.model.forward import token_logprobs
from actors.model.load import load_policy
from actors.sampler.actor import start_sampler
from actors.weights.buckets import ObjectStoreTransport
from actors.weights.transport import FolderTransport
from tests.integration.actors.sampler.conftest import engine_settings
from tests.integration.actors.sampler.scripted import UNREACHABLE, CountingScorer, ThumbnailSearch

pytestmark = pytest.mark.timeout(240, func_only=True)

ROOT = Path(__file__).parents[4]
HERE = "tests.integration.actors.sampler.scripted"
LIMITS = Limits(max_total_tokens=2048, max_turn_tokens=48, turn_timeout_s=60, episode_timeout_s=120)
SHORT = Sampling(max_tokens=24)


def got(reference: Any, seconds: float = 120) -> Any:
    return ray.get(reference, timeout=seconds)


@dataclass(frozen=True)
class Running:
    """A sampler that is ready, and the processes of its engine."""

    actor: Any
    pid: int

    def play(self, question: Question, index: int = 0, **options: Any) -> tuple[Summary, Trajectory]:
        return got(list(self.actor.run.remote(question, index, SHORT, **options)), 120)

    def engine_processes(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.pid).children(recursive=True) if "VLLM" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")  # not longer: the cores that it holds are wanted by the tests of other folders
def sampler(ray_cluster, calm_folder: Path, pictures) -> Iterator[Running]:
    actor = start_sampler(
        str(calm_folder),
        engine_settings("bfloat16"),
        "extended",
        LIMITS,
        ThumbnailSearch(pictures.refs[-1]),
        CountingScorer(),
        pictures,
        version=3,
        num_cpus=1,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    facts = got(actor.ready.remote(), 200)
    assert facts["healthy"]
    assert facts["version"] == 3
    yield Running(actor, facts["pid"])
    got(actor.close.remote(), 60)
    ray.kill(actor)


def question(name: str, pictures, n_images: int = 2) -> Question:
    return Question(name, "who founded it?", tuple(pictures.refs[:n_images]), answers=("nobody",))


def test_a_garbage_writing_model_ends_its_episodes_cleanly_and_is_scored(sampler, pictures):
    asked = [sampler.actor.run.remote(question(f"q{i}", pictures), i, SHORT) for i in range(32)]
    summaries = got([summary for summary, _ in asked], 120)
    trajectories = got([payload for _, payload in asked], 120)
    for i, (summary, trajectory) in enumerate(zip(summaries, trajectories, strict=True)):
        assert summary == Summary.of(trajectory)
        assert (trajectory.question_id, trajectory.sample_index) == (f"q{i}", i)
        assert trajectory.failure is Failure.POLICY
        assert trajectory.reward is not None
        assert trajectory.reward.total == trajectory.sampled_tokens > 0
        assert trajectory.versions == (3,)


def test_the_learner_agrees_with_the_sampler_in_bf16_over_searching_episodes_with_several_images(
    sampler, pictures, renderer, pixels, calm_folder
):
    asked = [
        sampler.actor.run.remote(question(f"s{i}", pictures), i, SHORT, policy=f"{HERE}.search_then_sample")
        for i in range(16)
    ]
    trajectories = got([payload for _, payload in asked], 120)
    # a random model may write an image token, which no learner can place
    learnable = [
        t for t in trajectories if not any(renderer.image_token in s.token_ids for s in t.segments if s.trained)
    ]
    assert len(learnable) >= 8
    sequences, ours_only = [], []
    for trajectory in learnable:
        assert trajectory.searches == 1
        assert sum(len(segment.images) for segment in trajectory.segments) == 3  # a thumbnail came with the result
        sequences.append(expand(trajectory.segments, renderer.image_token))
        forced = next(i for i, s in enumerate(trajectory.segments) if s.kind is SegmentKind.ACTION)
        n = sum(s.expanded_length for s in trajectory.segments[: forced + 1])
        ours_only.append((np.arange(len(sequences[-1])) >= n).astype(np.float32))
    model = load_policy(calm_folder, "bfloat16").eval()
    assert _mean_difference(model, sequences, ours_only, pixels) <= 5e-3


def _mean_difference(model, sequences, ours_only, pixels) -> float:
    """Mean |learner - sampler| over the tokens that the engine sampled."""
    extras = {"behaviour": [s.logprobs for s in sequences], "sampled": ours_only}
    batch = collate(sequences, pixels, 0, extras)
    with torch.no_grad():
        difference = (token_logprobs(model, batch) - batch.flat("behaviour")).abs()
    sampled = batch.flat("sampled") > 0
    assert int(sampled.sum()) > 150
    return float(difference[sampled].mean())


def test_new_weights_come_with_a_ticket_and_a_torn_or_partial_publish_is_refused(
    sampler, pictures, calm_folder, tmp_path
):
    weights = dict(load_policy(calm_folder).named_parameters())
    transport = FolderTransport(tmp_path / "weights", calm_folder)

    torn = transport.send(4, weights.items())
    file = Path(torn.folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(RayTaskError, match="TornPublish"):
        got(sampler.actor.update.remote(torn), 60)

    partial = transport.send(5, [item for item in weights.items() if "layers.2" not in item[0]])
    with pytest.raises(RayTaskError, match=r"WeightMismatch.*the model needs"):
        got(sampler.actor.update.remote(partial), 60)

    with pytest.raises(RayTaskError, match=r"WeightsMissed.*was sent before it could receive"):
        got(sampler.actor.update.remote(replace(partial, kind="nccl")), 60)

    summary, _ = sampler.play(question("still", pictures))
    assert (summary.failure, summary.newest_version) == (Failure.POLICY, 3)
    assert got(sampler.actor.update.remote(transport.send(6, weights.items())), 60) == 6
    assert sampler.play(question("now", pictures))[0].oldest_version == 6

    elsewhere = ObjectStoreTransport(1 << 20).send(7, weights.items())
    assert got(sampler.actor.update.remote(elsewhere), 60) == 7
    assert sampler.play(question("later", pictures))[0].oldest_version == 7


def test_what_a_judge_does_not_score_is_masked_and_never_a_reward_of_zero(sampler, pictures):
    summary, trajectory = sampler.play(question("unjudged", pictures))
    assert summary.failure is Failure.INFRA
    assert trajectory.reward is None
    assert "the judge is down" in trajectory.problem


def test_a_picture_that_no_store_holds_is_the_data_s_fault(sampler, pictures):
    lost = replace(pictures.refs[0], sha256="0" * 64)
    summary, trajectory = sampler.play(Question("lost", "who?", (lost,)))
    assert (summary.failure, trajectory.reward) == (Failure.DATA, None)


def test_storage_that_fails_is_no_fault_of_the_data(sampler, pictures):
    summary, trajectory = sampler.play(Question("unreachable", "who?", (UNREACHABLE,)))
    assert (summary.failure, trajectory.reward) == (Failure.INFRA, None)
    assert "storage is down" in trajectory.problem


def test_cancelled_episodes_end_as_failed_ones_and_leave_nothing_behind(sampler, pictures):
    asked = [sampler.actor.run.remote(question("stop", pictures), i, SHORT, policy=f"{HERE}.endless") for i in range(4)]
    other = sampler.actor.run.remote(question("go on", pictures), 0, SHORT)
    deadline = time.monotonic() + 30
    while got(sampler.actor.stats.remote())["episodes"] < 4 and time.monotonic() < deadline:
        pass  # each turn of this loop waits for the actor
    assert got(sampler.actor.cancel.remote("stop", 2), 30) == 1
    assert got(asked[2][0], 30).failure is Failure.INFRA
    assert not ray.wait([summary for i, (summary, _) in enumerate(asked) if i != 2], timeout=1)[0]
    assert got(sampler.actor.cancel.remote("stop"), 30) == 3
    for summary, _ in asked:
        assert got(summary, 30).failure is Failure.INFRA
    assert got(other[0], 60).failure is Failure.POLICY
    stats = got(sampler.actor.stats.remote(), 30)
    assert (stats["episodes"], stats["running"], stats["waiting"]) == (0, 0, 0)


def test_on_cpu_no_worker_spins_beside_the_engine(sampler):
    assert [" ".join(process.cmdline()).strip() for process in sampler.engine_processes()] == ["VLLM::EngineCore"]


def test_an_engine_that_hangs_is_not_healthy_until_it_goes_on(sampler, pictures):
    core = [process for process in sampler.engine_processes() if "EngineCore" in " ".join(process.cmdline())]
    assert core
    try:
        for process in core:
            process.suspend()
        assert not got(sampler.actor.healthy.remote(), 30)
    finally:
        for process in core:
            process.resume()
    assert got(sampler.actor.healthy.remote(), 30)
    assert sampler.play(question("go on", pictures))[0].failure is Failure.POLICY


def test_an_engine_that_dies_is_an_infrastructure_failure_and_turns_unhealthy(sampler, pictures):
    """Last in this file: the engine is gone afterwards."""
    assert got(sampler.actor.healthy.remote(), 30)
    processes = sampler.engine_processes()
    assert processes
    for process in processes:
        process.kill()
    summary, trajectory = sampler.play(question("late", pictures))
    assert (trajectory.ending, summary.failure) == (Ending.FAILED, Failure.INFRA)
    assert not got(sampler.actor.healthy.remote(), 30)
