"""Search replicas that follow useful load: what waits for a provider's quota is none, however long its queue is.

A replica tells its `LoadSample` to Serve as numbers by name; Serve's controller hands the numbers of all replicas to
`QuotaAwareScaling`, which adds them up and asks the same `ScalingPolicy` that training's pool asks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from actors.search.load import EndpointLoad, LoadSample, merged
from actors.search.scaling import ScalingPolicy
from actors.search.settings import PoolSettings

_NUMBERS = [field.name for field in fields(EndpointLoad) if field.name != "name"]
_WHOLE = {field.name for field in fields(EndpointLoad) if field.type == "int"}


def as_stats(sample: LoadSample) -> dict[str, float]:
    """A sample as Serve takes it from a replica (`record_autoscaling_stats`): plain numbers by name."""
    stats = {"calls": float(sample.calls), "resting": float(sample.resting)}
    for endpoint in sample.endpoints:
        stats |= {f"{number}:{endpoint.name}": float(getattr(endpoint, number)) for number in _NUMBERS}
    return stats


def as_sample(stats: Mapping[str, float]) -> LoadSample:
    """What `as_stats` was given; numbers of other names are left out."""
    by_endpoint: dict[str, dict[str, Any]] = {}
    for key, value in stats.items():
        number, _, name = key.partition(":")
        if name and number in _NUMBERS:
            by_endpoint.setdefault(name, {})[number] = int(value) if number in _WHOLE else value
    endpoints = tuple(EndpointLoad(name, **numbers) for name, numbers in sorted(by_endpoint.items()))
    return LoadSample(endpoints, int(stats.get("calls", 0)), int(stats.get("resting", 0)))


class QuotaAwareScaling:
    """A policy of Serve's `AutoscalingConfig`, made in its controller from `PoolSettings`' fields."""

    def __init__(self, **pool: Any) -> None:
        self._policy = ScalingPolicy(PoolSettings(**pool))

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """`context`: `ray.serve.config.AutoscalingContext`. Returns how many replicas there should be."""
        sample = merged(as_sample(stats) for stats in newest(context.raw_metrics or {}))
        now = context.current_time if context.current_time is not None else time.time()
        return self._policy.decide(now, context.target_num_replicas, sample), {}


def newest(metrics: Mapping[str, Mapping[Any, Any]]) -> Iterable[dict[str, float]]:
    """The last numbers of each replica; `metrics` is by name, then by replica, a series of time-stamped values."""
    by_replica: dict[Any, dict[str, float]] = {}
    for name, series_of in metrics.items():
        for replica, series in series_of.items():
            if series:
                by_replica.setdefault(replica, {})[name] = float(series[-1].value)
    return by_replica.values()
