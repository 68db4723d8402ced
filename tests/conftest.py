"""What all tests share: quiet engines, no network, and a reason for every skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# A loaded machine makes any example slow: how long one takes says nothing about the code.
# 50 examples a run, others at each: the suite has ten minutes, and is run often.
hypothesis_settings.register_profile(
    "house", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("house")

# Before anything imports torch, Ray or vLLM: one thread each, no reporting home.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("RAY_ADDRESS", None)  # a test never joins a cluster that it did not start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by folder, and skips what needs a GPU where there is none.

    Whole workflows, whose files take longest, come before the other integration tests: of two processes that share the
    files, none is left alone with them at the end.
    """
    from cluster import machine

    no_gpu = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
    for item in items:
        folders = item.path.relative_to(Path(__file__).parent).parts
        if "integration" in folders:
            item.add_marker(pytest.mark.integration)
        if "slow" in folders:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") is not None and not machine.gpus():
            item.add_marker(no_gpu)
    items.sort(key=_rank)  # stable: the order within is pytest's


def _rank(item: pytest.Item) -> int:
    kind, *folders = item.path.relative_to(Path(__file__).parent).parts
    order = ["unit", "integration/workflows", "integration", "slow"]
    return order.index(f"{kind}/workflows" if kind == "integration" and "workflows" in folders else kind)
