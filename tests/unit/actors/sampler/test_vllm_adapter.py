"""Spans that we stamp ourselves cover every token once, in order."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import VersionSpan, WeightVersion
from actors.sampler.settings import EngineSettings
from actors.sampler.vllm_adapter import SpanLedger, engine_spans

arrivals = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=20)


@given(arrivals)
def test_stamped_spans_tile_the_turn_and_never_go_back_in_version(steps):
    ledger, total, version, expected = SpanLedger(), 0, 0, []
    for new, updates in steps:
        version += updates
        total += new
        expected += [version] * new
        ledger.reached(total, WeightVersion(version))
    spans = ledger.spans()
    assert [int(span.version) for span in spans for _ in range(span.start, span.end)] == expected
    assert all(a.end == b.start and a.version < b.version for a, b in pairwise(spans))
    assert not spans or spans[0].start == 0


def test_the_engine_s_labels_become_spans_without_the_empty_ones():
    labels = [SimpleNamespace(version="3", start=0, end=5), SimpleNamespace(version="4", start=5, end=5)]
    assert engine_spans(SimpleNamespace(weight_versions=labels)) == (VersionSpan(WeightVersion(3), 0, 5),)
    assert engine_spans(SimpleNamespace(weight_versions=None)) == ()


def test_an_unknown_dtype_says_what_is_accepted():
    with pytest.raises(ValueError, match="accepted: float32, bfloat16, float16"):
        EngineSettings(dtype="int4").check()
