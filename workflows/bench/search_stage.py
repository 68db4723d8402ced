"""The stage of the search bench: the provider as a process, the settings that ask it, a store without pictures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actors.agent.trajectory import ImageRef
from actors.search.quota.settings import QuotaSettings
from actors.search.settings import ProviderSettings, SearchSettings
from workflows.bench.search_provider import ProviderLoad, command

KEY_ENV = "MMSEARCH_BENCH_KEY"
START_S = 20.0  # for the provider to print its port


def slow_provider(per_second: float, burst: int) -> ProviderLoad:
    """The provider of the figures: median 400 ms, p99 3 s, one error in a hundred."""
    return ProviderLoad(per_second=per_second, burst=burst, median_s=0.4, p99_s=3.0, errors=0.01)


def serper_settings(url: str, quota: QuotaSettings | None, **more: Any) -> SearchSettings:
    path = "actors.search.providers.serper:SerperSearch"
    provider = ProviderSettings(
        path=path, name=f"bench-{os.getpid()}", kwargs={"base_url": url, "key_env": KEY_ENV}, quota=quota
    )
    return SearchSettings(text=[provider], call_deadline=3600.0, max_concurrency=4096, **more)


class NoImages:
    """An ImageStore for those who search for text alone."""

    def put(self, data: bytes) -> ImageRef:
        raise NotImplementedError("the bench searches for text")

    def get(self, ref: ImageRef) -> bytes:
        raise NotImplementedError("the bench searches for text")

    def has(self, ref: ImageRef) -> bool:
        return False


@asynccontextmanager
async def running_provider(load: ProviderLoad) -> AsyncIterator[str]:
    """The address of a provider in a process of its own."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command(load), stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), START_S))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
