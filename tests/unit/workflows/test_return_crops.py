"""`agent.return_crops`, from the command line to whoever plays, scores and shows episodes."""

import pytest

from actors.agent.prompts import PRESETS
from cluster.errors import UserError
from workflows.evaluate.run import plan_of as evaluation_of
from workflows.grpo.plan import plan_of as training_of
from workflows.settings import load


@pytest.mark.parametrize("plan_of", [training_of, evaluation_of])
def test_rollouts_and_evaluations_are_played_with_crops_where_the_configuration_says_so(plan_of, tmp_path):
    here = f"run.storage={tmp_path}"
    assert plan_of(load("embedded", [here])).preset == "compact"
    preset = plan_of(load("embedded", [here, "agent.return_crops=true"])).preset
    assert preset == "compact+crops"
    assert PRESETS[preset].return_crops


def test_a_papers_preset_with_crops_is_refused_with_the_settings_path():
    with pytest.raises(UserError, match=r"agent.*return_crops is true, but under preset mmsearch_r1"):
        load("embedded", ["agent.preset=mmsearch_r1", "agent.return_crops=true"])
