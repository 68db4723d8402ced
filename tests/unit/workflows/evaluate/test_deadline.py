"""When an episode of an arm is given up from outside."""

from workflows.evaluate.run import plan_of
from workflows.settings import load


def test_an_episode_is_given_up_only_after_it_had_its_time_and_its_reward(tmp_path):
    overrides = ["agent.limits.episode_timeout_s=100", "agent.limits.grace_s=20", "reward.timeout=30"]
    plan = plan_of(load("embedded", [f"run.storage={tmp_path}", *overrides]))
    assert plan.limits.longest_s == 120
    assert 150 < plan.episode_s < 180
