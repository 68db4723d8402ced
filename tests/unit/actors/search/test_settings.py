"""Settings of the search that cannot work are refused at load, with both keys and why."""

import pytest

from actors.search.settings import SearchSettings
from cluster.config import load
from cluster.errors import UserError

PROVIDER = "path: 'a.b:C', usd_per_call: 0.01, quota"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attempt_deadline=61"], "attempt_deadline is 61 and must be at most call_deadline, 60"),
        (["call_deadline=5"], "attempt_deadline is 20 and must be at most call_deadline, 5"),
        (["retry.longest_wait=61"], "retry.longest_wait is 61 and must be at most call_deadline, 60"),
        (["retry.first_wait=9"], "retry: first_wait is 9 and must be at most longest_wait, which is 8"),
        (["readers=[{path: 'a.b:C'}]", "pages.deadline_s=61"], "pages.deadline_s is 61 and must be at most"),
        (["cache.folder=x", "cache.rpc_s=61"], "cache.rpc_s is 61 and must be at most"),
        (["cache.folder=x", "cache.wait_s=60"], "cache.wait_s is 60 and must be above call_deadline, 60"),
        ([f"text=[{{{PROVIDER}: {{lease_seconds: 20}}}}]"], r"text\[0\].quota.lease_seconds is 20 and must be above"),
        ([f"grounder={{{PROVIDER}: {{lease_seconds: 20}}}}"], "grounder.quota.lease_seconds"),
        (
            [f"readers=[{{path: 'a.b:C'}}, {{{PROVIDER}: {{tokens_per_call: 100, per_day: {{tokens: 99}}}}}}]"],
            r"readers\[1\].quota.per_day.tokens is 99 and must be at least tokens_per_call, 100",
        ),
        (
            [f"image=[{{{PROVIDER}: {{per_month: {{usd: 0.009}}}}}}]"],
            r"image\[0\].quota.per_month.usd is 0.009 and must be at least usd_per_call, 0.01",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(words, said):
    with pytest.raises(UserError, match=said):
        load(SearchSettings, None, words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["call_deadline=20", "retry.longest_wait=20"],
        ["call_deadline=20", "retry.retries=0", "retry.longest_wait=61", "retry.first_wait=99"],  # nobody waits
        ["pages.deadline_s=61"],  # no pages are read
        ["cache.wait_s=20", "cache.rpc_s=61"],  # nothing is shared
        [f"text=[{{{PROVIDER}: {{lease_seconds: 20.1, per_day: {{usd: 0.01}}}}}}]"],
        [f"text=[{{{PROVIDER}: {{tokens_per_call: 100}}}}]"],  # no budget at all
    ],
)
def test_what_can_work_is_taken(words):
    load(SearchSettings, None, words)
