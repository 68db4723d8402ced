"""A judge under a quota, at a real HTTP endpoint: leases, what they are settled with, and what a refusal means."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
import ray

from actors.reward.judge import Case, Judge, Unanswered
from actors.reward.settings import JudgePrompt, JudgeSettings
from actors.search.quota.budgets import Spend
from actors.search.quota.core import Ending
from actors.search.quota.desk import LeaseDesk
from actors.search.quota.settings import BudgetSettings, QuotaSettings
from cluster.storage import Folder
from tests.integration.actors.reward.judge_server import KEY, Reply, completion, refusal, served
from workflows.evaluate.judge_endpoint import JudgeEndpoint, judge_provider
from workflows.quota import standings

YES = completion("[CORRECT] the same")  # the server counts 2 tokens for each
CASES = [Case("who founded it?", ("Ada Lune",), f"answer {i}") for i in range(10)]
ASKED = [{"role": "user", "content": "is it so?"}]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Brokers are of this process, whatever other tests of the session have started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def settled(monkeypatch):
    """Every settlement that any desk was told."""
    told, settle = [], LeaseDesk.settle
    monkeypatch.setattr(LeaseDesk, "settle", lambda desk, one: (told.append(one), settle(desk, one))[1])
    return told


def settings_of(server, **changes):
    plain = JudgeSettings("a-judge", server.address, "JUDGE_KEY", JudgePrompt.DEEPMMSEARCH_R1, concurrency=1)
    return replace(plain, timeout_s=20.0, retries=0, **changes)


async def verdicts(settings, folder, cases=CASES):
    """Of a judge whose verdicts and journal are in `folder`."""
    model = JudgeEndpoint(settings, str(folder / "quota"))
    try:
        return await Judge(settings, model, None, Folder(folder)).verdicts(cases)  # type: ignore[arg-type]
    finally:
        await model.close()


async def said(settings, folder=""):
    model = JudgeEndpoint(settings, str(folder))
    try:
        return await model.say(ASKED)
    finally:
        await model.close()


def today(settings, folder):
    return standings([judge_provider(settings)], str(folder / "quota"), time.time())[0]


async def test_every_request_has_a_lease_that_is_settled_with_the_tokens_that_the_endpoint_counted(tmp_path, settled):
    with served(lambda n, body: YES) as server:
        settings = settings_of(server, quota=QuotaSettings(per_day=BudgetSettings(requests=100, tokens=50)))
        assert all(verdict.right for verdict in await verdicts(settings, tmp_path))
        assert len(server.requests) == 10
    assert len({one.lease for one in settled}) == 10
    assert {(one.ending, one.spend) for one in settled} == {(Ending.ANSWERED, Spend(1, 2, 0))}
    row = today(settings, tmp_path)
    assert (row["requests"], row["tokens"], row["left"]) == (10, 20, {"requests": 90, "tokens": 30})
    assert row["endpoint"].startswith("judge-")
    assert KEY not in json.dumps(row)


@pytest.mark.parametrize(
    ("budget", "spent"),
    [(BudgetSettings(requests=3), "per_day.requests"), (BudgetSettings(tokens=6), "per_day.tokens")],
)
async def test_a_spent_budget_leaves_verdicts_unknown_and_nothing_is_sent_also_the_next_time(tmp_path, budget, spent):
    with served(lambda n, body: YES) as server:
        settings = settings_of(server, quota=QuotaSettings(per_day=budget, tokens_per_call=2))
        found = await verdicts(settings, tmp_path)
        assert [verdict.right for verdict in found] == [True] * 3 + [None] * 7
        assert all(spent in verdict.says for verdict in found[3:])
        again = await verdicts(settings, tmp_path)
        assert [verdict.right for verdict in again] == [True] * 3 + [None] * 7
        assert len(server.requests) == 3
        more = replace(settings, quota=QuotaSettings(per_day=BudgetSettings(requests=100)))
        assert all(verdict.right for verdict in await verdicts(more, tmp_path))
        assert len(server.requests) == 10


RETRY_AFTER = {"retry-after": "2"}


@pytest.mark.parametrize(
    ("reply", "ending", "retry_after", "final"),
    [
        (replace(refusal(429), headers=RETRY_AFTER), Ending.THROTTLED, 2.0, False),
        (refusal(401), Ending.NO_KEY, None, True),
        (refusal(403), Ending.NO_KEY, None, True),
        (replace(refusal(402), headers={}), Ending.NO_CREDIT, None, True),
        (replace(refusal(500), headers={}), Ending.FAILED, None, False),
        (replace(refusal(503), headers=RETRY_AFTER), Ending.FAILED, 2.0, False),
        (Reply(hangs=True), Ending.FAILED, None, False),
        (Reply(body=b"<html>welcome</html>", headers={"content-type": "text/html"}), Ending.FAILED, None, False),
        (replace(refusal(400), headers={}), Ending.ANSWERED, None, False),
    ],
)
async def test_a_lease_ends_as_its_request_did(settled, reply, ending, retry_after, final):
    with served(lambda n, body: reply) as server:
        settings = replace(settings_of(server, quota=QuotaSettings()), timeout_s=0.1 if reply.hangs else 20.0)
        with pytest.raises(Unanswered) as caught:
            await said(settings)
    [one] = settled
    assert (one.ending, one.retry_after, one.spend) == (ending, retry_after, Spend(1, 0, 0))
    assert caught.value.final is final


@pytest.mark.parametrize("status", [401, 402])
async def test_without_key_or_credit_one_request_is_enough(tmp_path, status):
    with served(lambda n, body: refusal(status)) as server:
        found = await verdicts(settings_of(server, quota=QuotaSettings()), tmp_path)
        assert len(server.requests) == 1
    assert [verdict.right for verdict in found] == [None] * 10
    assert "not asked" in found[-1].says


async def test_a_retry_has_a_lease_of_its_own_and_waits_as_long_as_the_endpoint_asked(settled):
    def throttled(n, body):
        return replace(refusal(429), headers={"retry-after-ms": "300"}) if n == 0 else YES

    with served(throttled) as server:
        began = time.monotonic()
        await said(replace(settings_of(server, quota=QuotaSettings()), retries=1))
        assert time.monotonic() - began >= 0.3
        assert len(server.requests) == 2
    assert [one.ending for one in settled] == [Ending.THROTTLED, Ending.ANSWERED]
    assert settled[0].lease != settled[1].lease


async def test_an_open_circuit_is_sat_out(settled):
    quota, waits = QuotaSettings(failures_to_open=1, open_seconds=0.2), []

    async def sleep(seconds):
        """What lies between attempts is short, so that the second one meets the open circuit."""
        waits.append(seconds)
        await asyncio.sleep(seconds if seconds == quota.open_seconds else 0.02)

    with served(lambda n, body: replace(refusal(500), headers={}) if n == 0 else YES) as server:
        model = JudgeEndpoint(replace(settings_of(server, quota=quota), retries=1), sleep=sleep)
        assert (await model.say(ASKED)).startswith("[CORRECT]")
        await model.close()
        assert len(server.requests) == 2
    assert waits[1:] == [quota.open_seconds]
    assert [one.ending for one in settled] == [Ending.FAILED, Ending.ANSWERED]


async def test_a_circuit_that_stays_open_is_sat_out_as_often_as_a_request_is_repeated_and_no_oftener():
    quota, waits = QuotaSettings(failures_to_open=1, open_seconds=60.0), []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.sleep(0.02)

    with served(lambda n, body: replace(refusal(500), headers={})) as server:
        model = JudgeEndpoint(replace(settings_of(server, quota=quota), retries=2), sleep=sleep)
        with pytest.raises(Unanswered, match="closed off") as caught:
            await model.say(ASKED)
        await model.close()
        assert len(server.requests) == 1
    assert waits.count(60.0) == 2
    assert not caught.value.final


async def test_an_endpoint_that_is_down_is_given_up(tmp_path):
    quota = QuotaSettings(failures_to_open=1, open_seconds=60.0)
    with served(lambda n, body: replace(refusal(500), headers={})) as server:
        found = await verdicts(
            settings_of(server, quota=quota),
            tmp_path,
            [*CASES, *(replace(c, question="when?") for c in CASES), replace(CASES[0], question="where?")],
        )
        assert len(server.requests) < 20
    assert all(verdict.right is None for verdict in found)
    assert "20 failures in a row" in found[-1].says


async def test_no_more_requests_are_in_flight_than_the_quota_lets_through(tmp_path):
    with served(lambda n, body: YES) as server:
        settings = replace(settings_of(server, quota=QuotaSettings(concurrency=2)), concurrency=8)
        assert all(verdict.right for verdict in await verdicts(settings, tmp_path))
    assert server.most_at_once <= 2


async def test_a_judge_without_a_quota_is_asked_without_leases(tmp_path, settled):
    with served(lambda n, body: YES) as server:
        assert all(verdict.right for verdict in await verdicts(settings_of(server), tmp_path))
    assert settled == []
    assert not (tmp_path / "quota").exists()
