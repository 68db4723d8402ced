"""RewardEvaluator actors under a real Ray: what a score gets when an evaluator is killed in the middle of it."""

import asyncio
import os
import pickle
import signal
from pathlib import Path

import pytest
import ray

from actors.agent.trajectory import Ending, Failure
from actors.reward.actor import RemoteScorer, RewardEvaluator, start_evaluators
from actors.reward.score import ScoringFailed
from actors.reward.settings import RewardSettings
from tests.unit.actors.reward.episodes import ASK, QUESTION, episode, say

pytestmark = pytest.mark.usefixtures("ray_cluster")
RIGHT = episode([say("Ilse Tarn")], "Ilse Tarn")


class DiesOnce(RewardEvaluator):
    """A RewardEvaluator that kills its process in the middle of the first score that finds no mark of a death."""

    def __init__(self, settings: RewardSettings, protocol: str, mark: str) -> None:
        super().__init__(settings, protocol)
        self.mark = Path(mark)

    async def score(self, question, trajectory):
        if not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().score(question, trajectory)


@pytest.mark.parametrize("n_evaluators", [1, 2])
async def test_an_evaluator_killed_in_mid_score_loses_no_score(tmp_path, n_evaluators):
    actor_class = ray.remote(DiesOnce).options(num_cpus=0.1, max_restarts=-1)
    mark = str(tmp_path / "died")
    handles = [actor_class.remote(RewardSettings(), "extended", mark) for _ in range(n_evaluators)]
    try:
        scorer = pickle.loads(pickle.dumps(RemoteScorer(handles)))
        parts = await asyncio.gather(*(scorer.score(QUESTION, RIGHT) for _ in range(20)))
        assert Path(mark).exists()
        assert [part.total for part in parts] == [1.0] * 20
    finally:
        for handle in handles:
            ray.kill(handle)  # type: ignore[arg-type]


async def test_what_has_no_reward_says_so_by_its_type_and_dead_evaluators_are_an_infra_failure():
    handles = start_evaluators(RewardSettings(), "extended")
    scorer = RemoteScorer(handles, timeout=60.0)
    assert (await scorer.score(QUESTION, RIGHT)).accuracy == 1.0
    spoilt = episode([ASK], "", failure=Failure.DATA, ending=Ending.FAILED)
    with pytest.raises(ScoringFailed) as caught:
        await scorer.score(QUESTION, spoilt)
    assert caught.value.failure is Failure.DATA
    for handle in handles:
        ray.kill(handle)
    with pytest.raises(ScoringFailed, match="no reward evaluator answered") as caught:
        await _scored_until_refused(RemoteScorer(handles, timeout=0.5))
    assert caught.value.failure is Failure.INFRA


async def _scored_until_refused(scorer) -> None:
    """A kill takes effect some time after its call."""
    for _ in range(100):
        await scorer.score(QUESTION, RIGHT)


def test_a_protocol_that_does_not_exist_is_refused_before_an_actor_starts():
    with pytest.raises(KeyError):
        start_evaluators(RewardSettings(), "no such preset")
