"""Search providers that take longer than they are: a provider of the run's configuration, with injected latency.

The latency is drawn from the seed and the content of the query alone, so that all arms meet the same trace: the same
query takes the same time in each, whoever asks it and when. It is log-normal. Answers are the provider's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

from actors.search.build import provider_class
from actors.search.quota.settings import QuotaSettings
from actors.search.seams import ImageHit, ImageQuery, TextHit, TextQuery
from actors.search.settings import ProviderSettings, SearchSettings
from workflows.bench.async_form import ToolTrace

LONGEST_S = 15.0  # beyond it the gateway's own deadline for one attempt would make failures of slow answers
NORMAL = NormalDist()


def latency_s(trace: ToolTrace, seed: int, content: bytes) -> float:
    """Seconds that this query takes, in this trace and under this seed."""
    if not trace.median_s:
        return 0.0
    digest = hashlib.sha256(f"{seed}\0".encode() + content).digest()
    share = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64  # in (0, 1), evenly
    sigma = math.log(max(1.0, trace.p99_s / trace.median_s)) / NORMAL.inv_cdf(0.99)
    return min(LONGEST_S, trace.median_s * math.exp(sigma * NORMAL.inv_cdf(share)))


class _Slow:
    """What both kinds have in common. `inner` is `{path, kwargs}` of the provider, `trace` a `ToolTrace` as a dict."""

    def __init__(self, inner: Mapping[str, Any], trace: Mapping[str, Any], seed: int) -> None:
        self._inner = provider_class(ProviderSettings(path=inner["path"]))(**inner["kwargs"])
        self._trace, self._seed = ToolTrace(**trace), seed

    async def prepare(self) -> None:
        """As the provider's own, if it has one."""
        if (prepare := getattr(self._inner, "prepare", None)) is not None:
            await prepare()

    async def close(self) -> None:
        """As the provider's own, if it has one."""
        if (close := getattr(self._inner, "close", None)) is not None:
            await close()

    async def _wait(self, content: bytes) -> None:
        await asyncio.sleep(latency_s(self._trace, self._seed, content))


class SlowTextSearch(_Slow):
    """`TextSearch` with latency."""

    async def search(self, query: TextQuery) -> list[TextHit]:
        await self._wait(query.text.casefold().encode())
        return await self._inner.search(query)


class SlowImageSearch(_Slow):
    """`ImageSearch` with latency."""

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        await self._wait(image.image)
        return await self._inner.search(image)


def slowed(search: SearchSettings, trace: ToolTrace, seed: int, name: str) -> SearchSettings:
    """The same tools under the trace. `name` keeps the quotas of one run apart from those of all others."""

    def one(settings: ProviderSettings, kind: str, number: int) -> ProviderSettings:
        inner = {"path": settings.path, "kwargs": dict(settings.kwargs)}
        quota = QuotaSettings(per_second=trace.per_second, burst=trace.burst) if trace.per_second else None
        return replace(
            settings,
            path=f"{__name__}:Slow{kind}Search",
            kwargs={"inner": inner, "trace": asdict(trace), "seed": seed},
            name=f"bench-{name}-{kind.lower()}-{number}",
            quota=quota,
        )

    return replace(
        search,
        text=[one(settings, "Text", i) for i, settings in enumerate(search.text)],
        image=[one(settings, "Image", i) for i, settings in enumerate(search.image)],
        quota_folder="",  # what is spent here is nobody's money
    )
