"""Search replicas by useful load, in a real Serve: its controller makes the policy, and feeds it what replicas tell."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from actors.search.load import LoadSample
from workflows.serve.scaling import as_stats

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]

NAME = "scaling"
WITHIN_S = 90.0  # for Serve to look, and to start or end a replica, on a busy machine
POLICY = "workflows.serve.scaling:QuotaAwareScaling"
POOL = {"min": 1, "max": 2, "per_actor": 10, "up_after_s": 0.0, "down_after_s": 0.0, "turn_every_s": 0.0}


@pytest.fixture
def busy(tmp_path):
    """While this file is there, every replica of the deployment says that it is busy."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    file = tmp_path / "busy"

    class Searching:
        """As workflows.serve.search.Search, as far as its load goes."""

        def record_autoscaling_stats(self):
            return as_stats(LoadSample((), calls=20 if file.exists() else 0))

        async def call(self):
            return None

    scale = AutoscalingConfig(
        min_replicas=1,
        max_replicas=2,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        metrics_interval_s=1.0,
        look_back_period_s=3.0,
        policy=AutoscalingPolicy(policy_function=POLICY, policy_kwargs=POOL),
    )
    serve.start(proxy_location="Disabled")
    made: Any = serve.deployment(Searching)  # its overloads tell pyright of a function
    bound = made.options(
        name=NAME, autoscaling_config=scale, ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=1.0
    ).bind()
    serve.run(bound, name=NAME, route_prefix=None)
    yield file
    serve.shutdown()


def replicas() -> int:
    """That run."""
    from ray import serve

    states: Any = serve.status().applications[NAME].deployments[NAME].replica_states
    return states.get("RUNNING", 0)


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not look():
        assert time.monotonic() < deadline, f"{replicas()} replicas after {WITHIN_S} s"
        time.sleep(0.2)


def test_replicas_come_with_load_and_go_with_it(busy):
    assert replicas() == 1
    busy.touch()
    until(lambda: replicas() == 2)
    busy.unlink()
    until(lambda: replicas() == 1)
