"""Search replicas by useful load: what Serve is told, and what its controller makes of it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from actors.search.load import EndpointLoad, LoadSample
from workflows.serve.scaling import QuotaAwareScaling, as_sample, as_stats

endpoints = st.builds(
    EndpointLoad,
    st.text(min_size=1, max_size=8),
    *[st.integers(0, 1000)] * 2,
    p95_s=st.floats(0, 100),
    per_second=st.floats(0, 100),
    concurrency=st.integers(0, 50),
    answered=st.integers(0, 512),
    served=st.integers(0, 10**6),
)
samples = st.builds(
    LoadSample,
    st.lists(endpoints, max_size=4, unique_by=lambda one: one.name).map(
        lambda found: tuple(sorted(found, key=lambda one: one.name))
    ),
    st.integers(0, 1000),
    st.integers(0, 1000),
)


@given(samples)
def test_a_sample_survives_the_way_as_numbers(sample):
    assert as_sample(as_stats(sample)) == sample


@dataclass
class Context:
    """Of `ray.serve.config.AutoscalingContext` what a policy reads; tests/integration has the real one."""

    current_time: float
    target_num_replicas: int
    raw_metrics: dict = field(default_factory=dict)


def context(now, current, *samples):
    raw = {}
    for replica, sample in enumerate(samples):
        for name, value in as_stats(sample).items():
            raw.setdefault(name, {})[replica] = [SimpleNamespace(timestamp=now, value=value)]
    return Context(now, current, raw)


def policy(**pool):
    return QuotaAwareScaling(**{"min": 1, "max": 8, "per_actor": 10, "up_after_s": 0.0, "down_after_s": 0.0} | pool)


def test_replicas_follow_what_is_under_way_on_all_of_them():
    busy = LoadSample((EndpointLoad("web", in_provider=20),), calls=20)
    assert policy()(context(0.0, 1, busy, busy))[0] == 4


def test_a_queue_at_a_quota_is_no_reason_for_more_replicas():
    parked = LoadSample(
        (EndpointLoad("web", in_provider=2, waiting=500, p95_s=1.0, per_second=2.0, answered=50),), calls=502
    )
    assert policy()(context(0.0, 1, parked))[0] == 1


def test_without_news_of_replicas_nothing_changes_beyond_the_bounds():
    assert policy(min=2)(context(0.0, 1))[0] == 2


def test_the_last_numbers_of_a_replica_count():
    old, new = LoadSample((), calls=80), LoadSample((), calls=10)
    raw = {
        name: {0: [SimpleNamespace(value=as_stats(old)[name]), SimpleNamespace(value=value)]}
        for name, value in as_stats(new).items()
    }
    assert policy()(Context(0.0, 1, raw))[0] == 1
