"""What scheduling learns of real search workers: how many requests wait for a quota, and how many were served."""

import asyncio
import time

import pytest

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.pool import Searchers
from actors.search.quota.settings import QuotaSettings
from actors.search.settings import PoolSettings, ProviderSettings, SearchSettings
from tests.unit.actors.search.search_world import FolderImages
from workflows.grpo.ray_ports import RayTools
from workflows.grpo.step_metrics import at_quota

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(180, func_only=True)]


@pytest.mark.parametrize("most", [2, 3])  # two workers for good, or a pool that may grow
async def test_requests_without_a_lease_are_counted_over_all_workers(tmp_path, most):
    quota = QuotaSettings(per_second=4.0, burst=1)
    text = ProviderSettings("tests.unit.actors.search.search_world:Sentences", name=f"slow-{most}", quota=quota)
    settings = SearchSettings(text=[text], pool=PoolSettings(min=2, max=most))
    searchers = Searchers(settings, FolderImages(str(tmp_path)))
    tools = RayTools(searchers)
    try:
        await searchers.ready()
        assert at_quota(await tools.load()) == 0
        asked = [ToolRequest(Tool.TEXT_SEARCH, f"who founded Velmora {i}") for i in range(24)]
        calls = [asyncio.create_task(searchers.toolbox.call(one, deadline=time.monotonic() + 60)) for one in asked]
        seen = []
        while not all(call.done() for call in calls):
            seen.append(await tools.load())
            await asyncio.sleep(0.2)
        assert max(sum(e.waiting for e in sample.endpoints) for sample in seen) > 10
        assert max(map(at_quota, seen)) > 0.5
        served = [sum(e.served for e in sample.endpoints) for sample in seen]
        assert served == sorted(served)
        assert sum(e.served for e in (await tools.load()).endpoints) == 24
        assert all(call.result().outcome is Outcome.OK for call in calls)
    finally:
        await searchers.close()
