"""Impossible settings are refused with the key's name."""

import subprocess
import sys

import pytest

from cluster.config import load
from cluster.errors import UserError
from workflows.grpo.settings import GrpoSettings


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ("groups_per_step=0", "groups_per_step"),
        ("max_staleness=-1", "max_staleness"),
        ("train_timeout_s=0", "train_timeout_s"),
        ("top_p=0.0", "top_p"),
        ("min_siblings=9", "min_siblings"),
        ("window=33", "window"),
        ("group_sise=8", "group_size"),
        ("export=best", "export=best needs evaluation.every"),
        ("evaluation.metric=f1", "evaluation.metric"),
    ],
)
def test_an_impossible_value_is_named(bad, key):
    with pytest.raises(UserError, match=key):
        load(GrpoSettings, None, [bad])


def test_slots_follow_from_staleness():
    assert GrpoSettings(max_staleness=0, groups_per_step=4).slots == 4
    assert GrpoSettings(max_staleness=2, groups_per_step=4).slots == 12


@pytest.mark.parametrize(
    ("given", "samplers", "most"),
    [(None, 1, 96), (None, 3, 32), (None, 5, 20), (None, 50, 8), (7, 1, 7)],
)
def test_a_sampler_plays_its_share_of_all_that_may_be_under_way_or_as_much_as_is_given(given, samplers, most):
    settings = GrpoSettings(
        max_staleness=2, groups_per_step=4, group_size=8, samplers=samplers, episodes_per_sampler=given
    )
    assert settings.most_per_sampler == most


@pytest.mark.parametrize(("group_size", "given", "most"), [(8, None, 512), (600, None, 600), (8, 2000, 2000)])
def test_no_more_than_512_wait_for_one_engine_unless_a_group_has_more_or_it_is_asked_for(group_size, given, most):
    settings = GrpoSettings(groups_per_step=1000, group_size=group_size, episodes_per_sampler=given)
    assert settings.most_per_sampler == most


def test_importing_the_settings_pulls_in_nothing_heavy():
    code = "import sys, workflows.grpo.settings; sys.exit(any(m in sys.modules for m in ('torch','ray','vllm')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
