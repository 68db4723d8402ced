"""What of a judge's settings cannot work is refused when they are loaded."""

import pytest

from actors.reward.settings import JudgeSettings
from actors.search.quota.settings import BudgetSettings, QuotaSettings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "judge.example"}, "base_url is 'judge.example'"),
        ({"name": ""}, "name must not be empty"),
        ({"quota": QuotaSettings(per_day=BudgetSettings(usd=1.0))}, "bound tokens instead"),
        ({"quota": QuotaSettings(per_month=BudgetSettings(usd=1.0))}, "bound tokens instead"),
        ({"quota": QuotaSettings(), "timeout_s": 120.0}, "lease_seconds is 120 and must be above timeout_s"),
    ],
)
def test_settings_that_cannot_work_are_told(changes, said):
    with pytest.raises(ValueError, match=said):
        JudgeSettings("a-judge", **changes).check()


def test_a_judge_may_be_bounded_in_requests_and_tokens_or_not_at_all():
    bounded = QuotaSettings(per_second=1.0, per_day=BudgetSettings(requests=10, tokens=1000))
    JudgeSettings("a-judge", quota=bounded).check()
    JudgeSettings("a-judge", timeout_s=600.0).check()
