"""Starting, using and leaving a real Ray."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
import ray

from cluster.errors import UserError
from cluster.runtime import NAMESPACE, Cluster, RuntimeSettings, connect


def test_workers_have_the_namespace_and_the_environment_of_the_run(ray_cluster: Cluster):
    @ray.remote(num_cpus=0)
    def look() -> tuple[str, str, str]:
        return (
            ray.get_runtime_context().namespace,
            os.environ["VLLM_CPU_OMP_THREADS_BIND"],
            os.environ["OMP_NUM_THREADS"],
        )

    assert ray.get(look.remote(), timeout=60) == (NAMESPACE, "nobind", os.environ["OMP_NUM_THREADS"])


def test_token_authentication_is_on(ray_cluster: Cluster):
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_asking_for_more_than_the_cluster_has_is_told_instead_of_pending(ray_cluster: Cluster):
    ray_cluster.require({"CPU": 2})
    with pytest.raises(UserError, match=r"GRPO needs 64 CPU \(the cluster has 2\), 1 GPU \(the cluster has 0\)"):
        ray_cluster.require({"CPU": 64, "GPU": 1}, "GRPO")


async def test_an_actor_that_never_gets_its_cores_is_told_instead_of_pending(ray_cluster: Cluster, caplog):
    class Holder:
        def ready(self) -> bool:
            return True

    held: Any = ray.remote(num_cpus=2)(Holder)
    first: Any = held.remote()
    second: Any = None
    try:
        await asyncio.wait_for(first.ready.remote(), 60)
        # Only now: of two actors that are asked for together, either may be the one that gets the cores.
        second = held.remote()
        ray_cluster.require({"CPU": 2}, "GRPO")
        assert "GRPO needs 2 CPU (free: 0): it waits for what others" in caplog.text
        with pytest.raises(UserError, match=r"GRPO did not start within 0.3 s: 0 of the cluster's 2 CPU are free"):
            async with ray_cluster.starting("GRPO", 0.3):
                await second.ready.remote()
    finally:
        for actor in filter(None, (first, second)):
            ray.kill(actor)


def test_a_second_connection_uses_the_first_and_leaves_it_alone(ray_cluster: Cluster):
    with connect(RuntimeSettings(address="local")) as second:
        assert second.resources["CPU"] == 2
    assert ray.is_initialized()


def test_a_user_error_from_an_actor_arrives_as_its_sentence(ray_cluster: Cluster):
    @ray.remote(num_cpus=0)
    def fail() -> None:
        raise UserError("The budget is spent.")

    with pytest.raises(UserError) as caught:
        ray.get(fail.remote(), timeout=60)
    assert getattr(caught.value, "cause", caught.value).message == "The budget is spent."


def test_a_cluster_that_is_not_there_is_one_sentence_at_once():
    # In a process of its own: this one is connected already.
    program = (
        "from cluster.runtime import RuntimeSettings, connect\n"
        "from cluster.errors import UserError\n"
        "try: connect(RuntimeSettings(address='127.0.0.1:1'))\n"
        "except UserError as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith("There is no Ray cluster to join at 127.0.0.1:1: "), done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_the_guard_makes_torchvision_importable_in_rays_workers(ray_cluster: Cluster):
    @ray.remote(num_cpus=0)
    def load() -> str:
        from transformers.models.qwen2_vl import image_processing_qwen2_vl

        return image_processing_qwen2_vl.__name__

    assert ray.get(load.remote(), timeout=100).endswith("qwen2_vl")
