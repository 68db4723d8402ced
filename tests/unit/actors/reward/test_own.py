"""A stranger's reward function: what it may return, and what happens when it fails."""

import sys
import types

import pytest

from actors.agent.seams import ScoringFailed
from actors.agent.trajectory import Failure, RewardParts
from actors.reward.own import own_reward, with_own_total
from actors.reward.settings import RewardSettings
from cluster.errors import UserError

PARTS = RewardParts(total=0.91, accuracy=1.0, format=1.0, penalty=0.9, searches=1)


@pytest.fixture
def mine(monkeypatch):
    module = types.ModuleType("mine_of_a_test")
    module.half = lambda question, trajectory, parts: parts.accuracy / 2
    module.number = 3
    monkeypatch.setitem(sys.modules, "mine_of_a_test", module)


def test_only_the_total_is_the_functions_own(mine):
    own = own_reward("mine_of_a_test:half")
    assert with_own_total(own, None, None, PARTS) == RewardParts(0.5, 1.0, 1.0, 0.9, 1)


@pytest.mark.parametrize("path", ["mine_of_a_test:absent", "nowhere_at_all:x", "mine_of_a_test:number", "noname", ""])
def test_a_path_that_leads_to_no_function_is_told(mine, path):
    with pytest.raises(UserError, match=r"reward\.function"):
        own_reward(path)


@pytest.mark.parametrize("own", [lambda *_: 1 / 0, lambda *_: float("nan"), lambda *_: "good", lambda: 1.0])
def test_what_fails_is_not_the_policys_fault(own):
    with pytest.raises(ScoringFailed) as failed:
        with_own_total(own, None, None, PARTS)
    assert failed.value.failure is Failure.INFRA


def test_a_reward_function_is_part_of_the_rule_and_so_of_a_runs_identity():
    assert RewardSettings(function="a:b").rule() != RewardSettings().rule()
