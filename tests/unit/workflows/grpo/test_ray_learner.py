"""Loading and exporting end: in time, or in a sentence. The ranks are stood in for."""

import asyncio

import pytest
from ray.exceptions import RayActorError

from cluster.errors import RunBroken, UserError
from workflows.grpo.plan import plan_of
from workflows.grpo.ports import LearnerGone
from workflows.grpo.ray_ports import RayLearner
from workflows.settings import load


class Ranks:
    """All that is asked of them ends so; without an error it never ends."""

    def __init__(self, error: Exception | None = None):
        self._error = error

    async def load(self, address):
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()

    export = load


@pytest.mark.parametrize(("what", "told"), [("load", "loading the learner's checkpoint"), ("export", "exporting")])
async def test_what_never_ends_is_given_up_in_a_sentence(what, told):
    with pytest.raises(RunBroken, match=f"{told}.* took longer than grpo.checkpoint_timeout_s"):
        await getattr(RayLearner(Ranks()), what)("folder", 0.01)


@pytest.mark.parametrize("what", ["load", "export"])
async def test_a_rank_that_dies_meanwhile_is_told_as_everywhere_and_what_it_raised_stays(what):
    with pytest.raises(LearnerGone, match="a learner process died"):
        await getattr(RayLearner(Ranks(RayActorError())), what)("folder", 5.0)
    with pytest.raises(UserError, match="no learner checkpoint"):
        await getattr(RayLearner(Ranks(UserError("no learner checkpoint"))), what)("folder", 5.0)


@pytest.mark.parametrize("filtered", [True, False])
def test_the_learner_keeps_flat_groups_where_they_are_not_filtered(filtered):
    made = plan_of(load("gpu_nodes", ["run.name=flat", f"grpo.filter_zero_variance={str(filtered).lower()}"]))
    assert made.learner_settings.flat_groups is not filtered
