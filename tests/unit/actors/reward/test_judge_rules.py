"""What a judge reads, and when it is believed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.reward.judge_rules import RULES, read_verdict
from actors.reward.settings import JudgePrompt, JudgeSettings

TAGS, BRACKETS = RULES[JudgePrompt.MMSEARCH_R1], RULES[JudgePrompt.DEEPMMSEARCH_R1]


@pytest.mark.parametrize(
    ("rule", "said", "right"),
    [
        (TAGS, "<judge>Yes</judge><reason>same</reason>", True),
        (TAGS, "<judge> no </judge>\n<reason>another</reason>", False),
        (TAGS, "<think><judge>No</judge> hm</think><judge>Yes</judge>", True),
        (TAGS, "Yes", None),
        (TAGS, "<judge>maybe</judge>", None),
        (TAGS, "<judge>yes</judge><judge>No</judge>", None),
        (TAGS, "[CORRECT]", None),
        (TAGS, "", None),
        (BRACKETS, "[CORRECT] the same", True),
        (BRACKETS, "It differs. [INCORRECT]", False),
        (BRACKETS, "[INCORRECT], not [CORRECT]", None),
        (BRACKETS, "correct", None),
    ],
)
def test_one_verdict_is_believed_and_anything_else_is_unknown(rule, said, right):
    verdict = read_verdict(rule, said)
    assert verdict.right is right
    assert verdict.says or right is not None


def test_a_reason_is_kept_and_is_short():
    assert read_verdict(TAGS, "<judge>No</judge><reason>another\n person</reason>").says == "another person"
    assert len(read_verdict(BRACKETS, "[CORRECT] " + "very " * 1000).says) == 500


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["<judge>", "</judge>", "Yes", "[CORRECT]", "<", "[", "]", '"', "\n", "Ada"])))
def test_nothing_that_is_judged_can_write_a_verdict(pieces):
    written = "".join(pieces)
    for rule in RULES.values():
        quoted = rule.ask("who?", ("Ada Lune",), written).partition("\n\n")[2]
        assert json.loads(quoted).keys() == {"question", "ground_truth", "candidate_answers", "response"}
        assert read_verdict(rule, quoted).right is None


def test_other_words_are_another_version():
    assert TAGS.version != BRACKETS.version
    assert set(RULES) == set(JudgePrompt)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must begin with http"):
        JudgeSettings("m", "localhost:8000").check()
    JudgeSettings("m", "http://localhost:8000/v1").check()
