"""The broker and the desk over it, on a real event loop: nobody waits past the deadline, nothing is lost."""

import asyncio

import pytest

from actors.search.quota.broker import QuotaBroker
from actors.search.quota.core import Ending, Reason, Refusal, Settlement
from actors.search.quota.desk import BrokerUnreachable, LeaseDesk, LocalSource
from actors.search.quota.journal import Journal
from actors.search.quota.settings import BudgetSettings, QuotaSettings
from actors.search.seams import ErrorKind, ProviderError
from cluster.storage import Folder

TEN = QuotaSettings(per_day=BudgetSettings(requests=10))


async def test_waiting_ends_with_nothing_at_the_deadline():
    broker = QuotaBroker("one", QuotaSettings(per_second=0.1))
    assert len(await broker.request(1, 1.0)) == 1  # type: ignore[arg-type]
    assert await broker.request(1, 0.01) == ()
    assert broker.standing().waiting == 0


async def test_a_lease_that_was_granted_as_its_asker_left_goes_back():
    broker = QuotaBroker("one", QuotaSettings(concurrency=1))
    (lease,) = await broker.request(1, 1.0)  # type: ignore[misc]
    waiting = asyncio.create_task(broker.request(1, 10.0))
    await asyncio.sleep(0)
    broker.settle([Settlement(lease, Ending.ANSWERED)])  # decides for the one who waits ...
    waiting.cancel()  # ... who has just been told to go
    await asyncio.gather(waiting, return_exceptions=True)
    assert broker.standing().in_flight == 0


async def test_what_was_spent_survives_a_broker_that_was_closed_to_the_last_request(tmp_path):
    journal = Journal(Folder(tmp_path), "one")
    broker = QuotaBroker("one", TEN, journal=journal)
    for _ in range(4):
        (lease,) = await broker.request(1, 1.0)  # type: ignore[misc]
        broker.settle([Settlement(lease, Ending.ANSWERED)])
    await broker.close()
    assert QuotaBroker("one", TEN, journal=journal).standing().left["day"]["requests"] == 6


async def test_a_broker_that_was_killed_forgets_nothing_and_claims_at_most_a_block_more(tmp_path):
    journal, quota = Journal(Folder(tmp_path), "one"), QuotaSettings(per_day=BudgetSettings(requests=1000))
    killed = QuotaBroker("one", quota, journal=journal)
    for _ in range(137):
        await killed.request(1, 1.0)
    left = QuotaBroker("one", quota, journal=journal).standing().left["day"]["requests"]
    assert 1000 - 137 - 2 * 20 <= left <= 1000 - 137


async def test_nothing_is_granted_while_the_journal_cannot_be_written_and_then_it_is(tmp_path):
    class Full(Journal):
        broken = True

        def write(self, claims):
            if self.broken:
                raise OSError("no space left")
            super().write(claims)

    journal = Full(Folder(tmp_path), "one")
    broker = QuotaBroker("one", TEN, journal=journal)
    assert await broker.request(1, 0.05) == ()
    journal.broken = False
    assert len(await broker.request(1, 5.0)) == 1  # type: ignore[arg-type]


async def test_a_desk_serves_all_who_wait_in_their_order():
    desk = LeaseDesk("one", LocalSource(QuotaBroker("one", QuotaSettings(per_second=2000, burst=1, jitter=0))))
    served: list[int] = []

    async def caller(i: int) -> None:
        await desk.lease()
        served.append(i)

    async with asyncio.timeout(10):
        await asyncio.gather(*(caller(i) for i in range(200)))
    assert served == list(range(200))


async def test_a_desk_turns_refusals_into_errors_of_their_kind():
    desk = LeaseDesk("serper", LocalSource(QuotaBroker("one", QuotaSettings(per_day=BudgetSettings(requests=1)))))
    desk.settle(Settlement(await desk.lease(), Ending.ANSWERED))
    await asyncio.sleep(0.02)
    with pytest.raises(ProviderError, match=r"serper: the budget of 1 requests a day") as caught:
        await desk.lease()
    assert caught.value.kind is ErrorKind.BUDGET


async def test_callers_who_leave_a_desk_take_no_lease_with_them():
    broker = QuotaBroker("one", QuotaSettings(concurrency=5))
    desk = LeaseDesk("one", LocalSource(broker))
    held = [await desk.lease() for _ in range(5)]
    leaving = [asyncio.create_task(desk.lease()) for _ in range(20)]
    await asyncio.sleep(0)
    for task in leaving[::2]:
        task.cancel()
    for lease in held:
        desk.settle(Settlement(lease, Ending.ANSWERED))
    for task in leaving[1::2]:
        desk.settle(Settlement(await asyncio.wait_for(task, 5), Ending.ANSWERED))
    await asyncio.sleep(0.05)
    assert broker.standing().in_flight == 0
    assert desk.waiting == 0


async def test_a_broker_that_is_away_is_asked_again_and_hears_late_what_has_ended():
    class Flaky(LocalSource):
        away = 2

        async def request(self, wanted, seconds_left):
            if self.away:
                self.away -= 1
                raise BrokerUnreachable("gone")
            return await super().request(wanted, seconds_left)

        async def settle(self, settlements):
            if self.away:
                self.away -= 1
                raise BrokerUnreachable("gone")
            await super().settle(settlements)

    broker = QuotaBroker("one", QuotaSettings(concurrency=1))
    source = Flaky(broker)
    desk = LeaseDesk("one", source)
    lease = await asyncio.wait_for(desk.lease(), 5)
    source.away = 1
    desk.settle(Settlement(lease, Ending.ANSWERED))
    await asyncio.wait_for(desk.lease(), 5)


async def test_new_limits_hold_from_now_on_and_what_was_spent_stays_spent():
    broker = QuotaBroker("one", TEN)
    for _ in range(3):
        await broker.request(1, 1.0)
    broker.configure(QuotaSettings(per_day=BudgetSettings(requests=4)), 0.0)
    assert broker.standing().left["day"]["requests"] == 1
    assert len(await broker.request(1, 1.0)) == 1  # type: ignore[arg-type]
    with_none = await broker.request(1, 0.01)
    assert with_none == () or (isinstance(with_none, Refusal) and with_none.reason is Reason.BUDGET)
