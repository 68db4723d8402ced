"""Injected latency is the same for the same query, whoever asks, and has the distribution that is told."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from statistics import median, quantiles
from typing import Any

import pytest

from actors.search.seams import ImageQuery, TextHit, TextQuery
from actors.search.settings import ProviderSettings, SearchSettings
from tests.unit.workflows.grpo.bad_world import play
from workflows.bench.async_form import TRACES, ToolTrace
from workflows.bench.async_latency import LONGEST_S, SlowTextSearch, latency_s, slowed

LOG_NORMAL = ToolTrace("log-normal", 0.4, 3.0)
HERE = f"{__name__}:Shelf"


class Shelf:
    """A provider that answers at once."""

    def __init__(self, word: str) -> None:
        self.word, self.prepared, self.closed = word, False, False

    async def search(self, query: TextQuery | ImageQuery) -> list[TextHit]:
        return [TextHit(self.word, "https://example.org/", "text")]

    async def prepare(self) -> None:
        self.prepared = True

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def slow(monkeypatch) -> SlowTextSearch:
    monkeypatch.setattr("workflows.bench.async_latency.provider_class", lambda _: Shelf)
    return SlowTextSearch({"path": HERE, "kwargs": {"word": "found"}}, asdict(LOG_NORMAL), 0)


def test_the_latency_is_drawn_from_query_and_seed_alone():
    first = [latency_s(LOG_NORMAL, 0, f"query {i}".encode()) for i in range(50)]
    assert first == [latency_s(LOG_NORMAL, 0, f"query {i}".encode()) for i in range(50)]
    assert first != [latency_s(LOG_NORMAL, 1, f"query {i}".encode()) for i in range(50)]
    assert len(set(first)) == 50


def test_median_and_p99_are_those_that_are_told():
    drawn = [latency_s(LOG_NORMAL, 0, str(i).encode()) for i in range(20_000)]
    assert median(drawn) == pytest.approx(0.4, rel=0.03)
    assert quantiles(drawn, n=100)[98] == pytest.approx(3.0, rel=0.08)


def test_no_latency_outlasts_what_the_gateway_allows_one_attempt():
    drawn = [latency_s(ToolTrace("slow", 10.0, 100.0), 0, str(i).encode()) for i in range(100)]
    assert max(drawn) == LONGEST_S


def test_without_a_median_nothing_is_injected():
    assert latency_s(ToolTrace("near-zero"), 0, b"query") == 0.0


def test_the_answer_is_the_providers_own_after_the_latency(slow):
    async def asked():
        began = asyncio.get_running_loop().time()
        hits = await slow.search(TextQuery("Who?", 2))
        return hits, asyncio.get_running_loop().time() - began

    result: Any = play(asked)[0]
    (hit,), seconds = result
    assert hit.title == "found"
    assert seconds == pytest.approx(latency_s(LOG_NORMAL, 0, b"who?"))


def test_what_a_provider_prepares_and_closes_is_prepared_and_closed(slow):
    async def whole_life():
        await slow.prepare()
        await slow.close()

    play(whole_life)
    assert (slow._inner.prepared, slow._inner.closed) == (True, True)


def test_every_search_endpoint_is_slowed_and_has_the_quota_of_the_trace_under_a_name_of_its_run():
    grounder = ProviderSettings("a:Grounder")
    search = SearchSettings(
        text=[ProviderSettings("a:Text", {"k": 1}), ProviderSettings("b:Text")], image=[ProviderSettings("c:Image")],
        grounder=grounder, quota_folder="/somewhere", top_k=2,
    )  # fmt: skip
    quota = next(trace for trace in TRACES if trace.per_second)
    found = slowed(search, quota, 7, "quota-sync-seed-7")
    assert [one.name for one in (*found.text, *found.image)] == [
        "bench-quota-sync-seed-7-text-0", "bench-quota-sync-seed-7-text-1", "bench-quota-sync-seed-7-image-0",
    ]  # fmt: skip
    assert {one.quota.per_second for one in (*found.text, *found.image) if one.quota} == {quota.per_second}
    assert found.text[0].kwargs["inner"] == {"path": "a:Text", "kwargs": {"k": 1}}
    assert found.text[0].path.endswith(":SlowTextSearch")
    assert found.image[0].path.endswith(":SlowImageSearch")
    assert (found.grounder, found.quota_folder, found.top_k) == (grounder, "", 2)
    assert all(one.quota is None for one in slowed(search, LOG_NORMAL, 7, "x").text)
