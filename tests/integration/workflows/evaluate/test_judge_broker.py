"""Judges of one cluster and the broker of their key, an actor that they find by its name."""

import uuid

import pytest
import ray

from actors.reward.judge import Unanswered
from actors.reward.settings import JudgeSettings
from actors.search.quota.actor import PREFIX, endpoint_id
from actors.search.quota.settings import BudgetSettings, QuotaSettings
from tests.integration.actors.reward.judge_server import KEY, completion, served
from workflows.evaluate.judge_endpoint import JudgeEndpoint

ASKED = [{"role": "user", "content": "is it so?"}]


@pytest.mark.usefixtures("ray_cluster")
async def test_judges_of_one_cluster_share_a_broker_by_name_and_its_budget(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(lambda n, body: completion("yes")) as server:
        name, quota = f"judge-{uuid.uuid4().hex[:8]}", QuotaSettings(per_day=BudgetSettings(requests=3))
        settings = JudgeSettings("a-judge", server.address, "JUDGE_KEY", name=name, quota=quota)
        one, other = JudgeEndpoint(settings), JudgeEndpoint(settings)
        broker = ray.get_actor(PREFIX + endpoint_id(name, KEY))
        try:
            for model in (one, other, one):
                assert await model.say(ASKED) == "yes"
            with pytest.raises(Unanswered, match=r"per_day\.requests") as caught:
                await other.say(ASKED)
        finally:
            await one.close()
            await other.close()
            ray.kill(broker)
        assert len(server.requests) == 3
    assert caught.value.final
