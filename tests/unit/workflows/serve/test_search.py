"""The search of the service: whose key pays, and when. Without Ray: the till is the process's own."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import ray

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.metering import spent
from actors.search.seams import ErrorKind, ProviderError, TextHit
from actors.search.settings import ProviderSettings, RetrySettings, SearchSettings
from workflows.serve.errors import ApiError
from workflows.serve.keys import digest
from workflows.serve.orders import Errand
from workflows.serve.search import Search
from workflows.serve.settings import KeySettings
from workflows.serve.till import Till

KEY = "mms-ada-and-nobody-else"
ADA = [KeySettings("ada", digest(KEY), 600.0, 1.0)]  # a dollar a day
REQUEST = ToolRequest(Tool.TEXT_SEARCH, "founder of velmora")


class Shop:
    """A search engine that answers when it is told to, at 0.6 USD and whatever else was `billed`."""

    def __init__(self, billed: float = 0.0, error: ErrorKind | None = None) -> None:
        self.billed, self.error = billed, error
        self.asked, self.open = asyncio.Event(), asyncio.Event()

    async def search(self, query):
        self.asked.set()
        await self.open.wait()
        spent(usd=self.billed)
        if self.error is not None:
            raise ProviderError(self.error, "out of paper")
        return [TextHit("Velmora", "https://web.example/1", "It was founded by Ilse Tarn.")]


SHOPS: dict[str, Shop] = {}


def shop_of(name: str) -> Shop:
    return SHOPS[name]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


class Replica(Search):
    """As Serve handles it: `__init__` and `__del__` are awaited, and the latter is not called again."""

    def __del__(self) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]


@asynccontextmanager
async def replica(tmp_path, shop):
    """A search replica at that shop, and the till that it charges."""
    SHOPS["shop"] = shop
    provider = ProviderSettings(path=f"{__name__}:shop_of", name="shop", kwargs={"name": "shop"}, usd_per_call=0.6)
    till = Till(ADA, str(tmp_path))
    made = Replica.__new__(Replica)
    await made.__init__(SearchSettings(text=[provider], image=[], retry=RetrySettings(retries=0)), till)
    yield made, till
    await Search.__del__(made)


async def may_come_in(till) -> bool:
    await till.settled()
    try:
        await till.admit(f"Bearer {KEY}")
    except ApiError:
        return False
    return True


async def test_a_search_is_charged_to_the_key_of_its_caller_and_a_repeated_one_is_free(tmp_path):
    shop = Shop()
    shop.open.set()
    async with replica(tmp_path, shop) as (search, till):
        found = [await search.call(Errand(REQUEST, "ada", 5.0)) for _ in range(3)]
        assert [one.result.cost_usd for one in found] == [0.6, 0.0, 0.0]
        assert await may_come_in(till)
        await search.call(Errand(ToolRequest(Tool.TEXT_SEARCH, "another"), "ada", 5.0))
        assert not await may_come_in(till)  # 1.2 of 1 USD


async def test_a_client_that_leaves_has_paid_for_the_search_that_was_under_way(tmp_path):
    shop = Shop(billed=0.5)
    async with replica(tmp_path, shop) as (search, till):
        left = asyncio.create_task(search.call(Errand(REQUEST, "ada", 5.0)))
        await shop.asked.wait()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert await may_come_in(till)  # nothing is paid yet
        shop.open.set()
        again = await search.call(Errand(REQUEST, "bob", 5.0))
        assert (again.result.outcome, again.result.cost_usd) == (Outcome.OK, 0.0)  # Ada's answer was kept
        assert not await may_come_in(till)


async def test_what_a_failed_search_was_billed_is_told_and_charged(tmp_path):
    shop = Shop(billed=1.5, error=ErrorKind.SCHEMA)
    shop.open.set()
    async with replica(tmp_path, shop) as (search, till):
        found = await search.call(Errand(REQUEST, "ada", 5.0))
        assert (found.result.outcome, found.result.cost_usd) == (Outcome.INFRA_ERROR, 1.5)
        assert not await may_come_in(till)
