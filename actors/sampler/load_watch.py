"""How full a vLLM engine is, as its scheduler says after every step: KV cache, queue, preemptions, prefix cache.

vLLM's own way to such figures is a stat logger, but with one it also keeps latencies of every request and token in the
front end, where whole episodes run, and feeds a Prometheus registry that nobody here reads. `WatchedLLM` takes the
scheduler's figures alone: one small record a step, that the engine's core makes once it is asked to.

Imported with vLLM, never before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger


@dataclass(frozen=True)
class EngineLoad:
    """Counters since the engine's start, and the most since last asked."""

    kv_used: float = 0.0  # share of the KV cache that requests held, at most since last asked
    queued: int = 0  # requests without a place in the engine, at the last step
    preempted: int = 0  # requests computed again whose KV was thrown out for others; told with a prefix cache alone
    prefix_hits: int = 0  # prompt tokens that were found in the prefix cache
    prefix_asked: int = 0  # prompt tokens that were looked for there


class LoadWatch(PrometheusStatLogger):
    """Keeps the sums. (Its base class tells vLLM that no logger for Prometheus is to be added.)"""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        """The base class's would register several dozen metrics."""
        self._most_kv = self._last_kv = 0.0
        self._queued = self._preempted = self._hits = self._asked = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """After a step of the engine."""
        if scheduler_stats is None:
            return
        self._last_kv = scheduler_stats.kv_cache_usage
        self._most_kv = max(self._most_kv, self._last_kv)
        self._queued = scheduler_stats.num_waiting_reqs
        prefix = scheduler_stats.prefix_cache_stats
        self._preempted += prefix.preempted_requests
        self._hits += prefix.hits
        self._asked += prefix.queries

    def take(self) -> EngineLoad:
        """The figures; the most of the KV cache begins anew."""
        most, self._most_kv = self._most_kv, self._last_kv
        return EngineLoad(most, self._queued, self._preempted, self._hits, self._asked)

    def log_engine_initialized(self) -> None:
        """Nothing."""

    def log(self) -> None:
        """Nothing."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing."""


class WatchedLLM(AsyncLLM):
    """An engine with a `LoadWatch`, and no other statistics."""

    def _run_output_handler(self) -> None:
        self.log_stats = False  # of the front end, from here on; the core has been told by now
        super()._run_output_handler()


def load_of(llm: Any) -> EngineLoad:
    """What the engine's watch has seen; zeros where it has none."""
    loggers = getattr(getattr(llm, "logger_manager", None), "stat_loggers", ())
    return next((one.take() for one in loggers if isinstance(one, LoadWatch)), EngineLoad())
