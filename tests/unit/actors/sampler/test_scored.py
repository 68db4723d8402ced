"""Whose fault it is that an episode failed, or has no reward."""

from dataclasses import replace

import pytest
from ray.exceptions import ObjectLostError, RayActorError

from actors.agent.seams import ScoringFailed
from actors.agent.trajectory import Ending, Failure, Question, RewardParts, Trajectory
from actors.sampler.actor import fault_of, scored
from cluster.drives import S3Failed
from cluster.errors import UserError

QUESTION = Question("q", "who founded it?", answers=("nobody",))
EPISODE = Trajectory("q", 0, (), (), Ending.ANSWERED, answer="nobody")
REWARD = RewardParts(total=1.0, accuracy=1.0, format=1.0, penalty=1.0, searches=0)


class Judge:
    def __init__(self, verdict: RewardParts | Exception) -> None:
        self.verdict, self.asked = verdict, 0

    async def score(self, question: Question, trajectory: Trajectory) -> RewardParts:
        self.asked += 1
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ScoringFailed(Failure.DATA, "question q has no gold answer"), Failure.DATA),
        (ScoringFailed(Failure.INFRA, "text_search in turn 1: refused"), Failure.INFRA),
        (ConnectionError("the judge is down"), Failure.INFRA),
    ],
)
async def test_an_episode_without_a_reward_fails_by_the_fault_that_the_scorer_names(error, failure):
    unscored = await scored(Judge(error), QUESTION, EPISODE)
    assert (unscored.ending, unscored.failure, unscored.reward) == (Ending.FAILED, failure, None)
    assert str(error) in unscored.problem


async def test_what_the_policy_did_is_scored_and_what_it_did_not_do_is_not_even_asked_about():
    assert (await scored(Judge(REWARD), QUESTION, EPISODE)).reward == REWARD
    out_of_turns = replace(EPISODE, ending=Ending.OUT_OF_TURNS, failure=Failure.POLICY)
    assert (await scored(Judge(REWARD), QUESTION, out_of_turns)).reward == REWARD
    for failure in (Failure.INFRA, Failure.DATA):
        judge, spoilt = Judge(REWARD), replace(EPISODE, ending=Ending.FAILED, failure=failure)
        assert await scored(judge, QUESTION, spoilt) is spoilt
        assert judge.asked == 0


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (S3Failed("S3 failed: no route"), Failure.INFRA),
        (OSError(28, "no space left on device"), Failure.INFRA),
        (TimeoutError(), Failure.INFRA),
        (UserError("There are no credentials for S3"), Failure.INFRA),
        (RayActorError(), Failure.INFRA),
        (ObjectLostError("00" * 28, "", ""), Failure.INFRA),
        (ValueError("a row that no code expects"), Failure.DATA),
        (KeyError("image"), Failure.DATA),
    ],
)
def test_what_ends_an_episode_from_outside_is_the_data_s_fault_only_when_no_machine_failed(error, failure):
    assert fault_of(error) is failure
