import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.prompts import PRESETS
from actors.agent.trajectory import Ending, Failure, Outcome
from actors.reward.score import ScoringFailed, combined, penalty, score
from actors.reward.settings import Matching, PenaltyPer, RewardPreset, RewardSettings
from tests.unit.actors.reward.episodes import ASK, QUESTION, episode, say

MMSEARCH = RewardSettings().rule()
DEEP = RewardSettings(preset=RewardPreset.DEEPMMSEARCH_R1).rule()
PER_CALL = RewardSettings(penalty_per=PenaltyPer.CALL).rule()
EXTENDED = PRESETS["extended"]


# papers.md section 5, "resulting values"
@pytest.mark.parametrize(
    ("accuracy", "form", "searches", "mmsearch", "deep"),
    [
        (1.0, True, 0, 1.00, 1.00),
        (1.0, True, 1, 0.91, 1.00),
        (1.0, True, 2, 0.91, 1.00),
        (1.0, False, 0, 0.90, 0.90),
        (1.0, False, 1, 0.81, 0.90),
        (0.0, True, 0, 0.10, 0.10),
        (0.0, True, 2, 0.10, 0.10),
        (0.0, False, 0, 0.00, 0.00),
        (0.0, False, 1, 0.00, 0.00),
    ],
)
def test_the_papers_values(accuracy, form, searches, mmsearch, deep):
    assert combined(accuracy, form, searches, MMSEARCH).total == pytest.approx(mmsearch)
    assert combined(accuracy, form, searches, DEEP).total == pytest.approx(deep)


def test_a_penalty_per_call_multiplies():
    assert [penalty(n, PER_CALL) for n in range(4)] == pytest.approx([1.0, 0.9, 0.81, 0.729])
    assert [penalty(n, MMSEARCH) for n in range(4)] == pytest.approx([1.0, 0.9, 0.9, 0.9])
    assert combined(1.0, True, 2, PER_CALL).total == pytest.approx(0.9 * 0.81 + 0.1)


@given(st.floats(0, 1), st.booleans(), st.integers(0, 12), st.floats(0, 1), st.floats(0, 1))
def test_a_reward_lies_between_0_and_1_and_searching_never_raises_it(accuracy, form, searches, weight, price):
    for per in PenaltyPer:
        rule = RewardSettings(format_weight=weight, search_penalty=price, penalty_per=per).rule()
        parts = combined(accuracy, form, searches, rule)
        assert 0.0 <= parts.total <= 1.0 + 1e-9
        assert combined(accuracy, form, searches + 1, rule).total <= parts.total + 1e-9


def test_an_episode_is_scored_with_its_parts():
    parts = score(QUESTION, episode([ASK, say("i tarn")], "i tarn", outcomes=[Outcome.OK]), MMSEARCH, EXTENDED)
    assert (parts.accuracy, parts.format, parts.penalty, parts.searches) == (1.0, 1.0, pytest.approx(0.9), 1)
    assert parts.total == pytest.approx(0.91)


def test_a_refused_search_costs_format_and_no_penalty():
    trajectory = episode([ASK, say("Ilse Tarn")], "Ilse Tarn", outcomes=[Outcome.POLICY_ERROR], format_ok=False)
    parts = score(QUESTION, trajectory, MMSEARCH, EXTENDED)
    assert (parts.searches, parts.penalty, parts.total) == (0, 1.0, pytest.approx(0.9))


def test_the_policys_own_failure_is_a_wrong_answer():
    lost = episode([ASK], "", failure=Failure.POLICY, ending=Ending.OUT_OF_TURNS, format_ok=False)
    assert score(QUESTION, lost, MMSEARCH, EXTENDED).total == 0.0


@pytest.mark.parametrize("failure", [Failure.INFRA, Failure.DATA])
def test_what_infrastructure_or_data_spoilt_has_no_reward(failure):
    with pytest.raises(ScoringFailed) as caught:
        score(QUESTION, episode([], "", failure=failure, ending=Ending.FAILED), MMSEARCH, EXTENDED)
    assert caught.value.failure is failure


@pytest.mark.parametrize("outcome", [Outcome.INFRA_ERROR, Outcome.REFUSED])
def test_an_episode_whose_search_failed_has_no_reward_even_when_it_went_on(outcome):
    with pytest.raises(ScoringFailed, match="text_search in turn 1") as caught:
        score(QUESTION, episode([ASK, say("x")], "x", outcomes=[outcome]), MMSEARCH, EXTENDED)
    assert caught.value.failure is Failure.INFRA


def test_a_question_without_answers_is_a_fault_of_the_data():
    for answers in ((), ("", " ")):
        question = dataclasses.replace(QUESTION, answers=answers)
        with pytest.raises(ScoringFailed) as caught:
            score(question, episode([say("x")], "x"), MMSEARCH, EXTENDED)
        assert caught.value.failure is Failure.DATA


def test_settings_change_a_preset_where_they_say_so_and_nowhere_else():
    rule = RewardSettings(preset=RewardPreset.DEEPMMSEARCH_R1, matching=Matching.F1, search_penalty=0.2).rule()
    assert rule == dataclasses.replace(DEEP, matching=Matching.F1, search_penalty=0.2)
    assert score(QUESTION, episode([say("Ilse")], "Ilse"), rule, EXTENDED).accuracy == pytest.approx(2 / 3)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ScoringFailed(Failure.DATA, "no")))
    assert (error.failure, str(error)) == (Failure.DATA, "no")
