import pytest

from actors.agent.prompts import PRESETS
from actors.reward.format import well_formed
from tests.unit.actors.reward.episodes import ASK, LOOK, episode, say

EXTENDED = PRESETS["extended"]


@pytest.mark.parametrize("turns", [[say("x")], [LOOK, say("x")], [LOOK, ASK, ASK, say("x [1]")]])
def test_any_order_of_whole_turns_that_ends_in_an_answer_is_well_formed(turns):
    assert well_formed(episode(turns, "x"), EXTENDED)


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [ASK],
        [ASK, LOOK],
        [say("x"), say("x")],
        ["<answer>x</answer>"],
        ["<reason>r<answer>x</answer>"],
        ["<reason>r</reason><answer>x"],
        ["<reason>r</reason><text_search>x</text_search><answer>x</answer>"],
        ["<reason>r</reason>so <answer>x</answer>"],
        ["<reason>r</reason><reason>r</reason><answer>x</answer>"],
        ["<reason>r</reason>", say("x")],
        [""],
        ["<reason>r</reason><img_search><img></text_search>", say("x")],
    ],
)
def test_a_turn_without_reason_with_two_actions_or_with_open_tags_is_malformed(turns):
    assert not well_formed(episode(turns, "x"), EXTENDED)


def test_the_episodes_own_verdict_counts():
    assert not well_formed(episode([say("x")], "x", format_ok=False), EXTENDED)


def test_the_tags_are_those_of_the_preset():
    look = "<reason>r</reason><search><img></search>"
    assert well_formed(episode([look, say("x")], "x"), PRESETS["mmsearch_r1"])
    assert not well_formed(episode([LOOK, say("x")], "x"), PRESETS["mmsearch_r1"])
    assert not well_formed(episode([look, say("x")], "x"), EXTENDED)


def test_more_turns_than_the_preset_has_are_malformed():
    three = episode([ASK, ASK, say("x")], "x")
    four = episode([ASK, ASK, ASK, say("x")], "x")
    assert well_formed(three, PRESETS["mmsearch_r1"])
    assert not well_formed(four, PRESETS["mmsearch_r1"])
