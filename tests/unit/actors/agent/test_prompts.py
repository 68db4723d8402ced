"""What the model reads: marks match pictures, numbers run on, and what others wrote stays words."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.prompts import GIVE_UP, PRESETS, gave_up, renumber
from actors.agent.protocol import TAGS
from actors.agent.settings import AgentSettings
from actors.agent.trajectory import Evidence, ImageRef, Outcome, Tool, ToolRequest, ToolResult

THUMBNAIL = ImageRef("c" * 64, 60, 60)
FRAGMENTS = [*TAGS, "<image>", "<|im_end|>", "<|image_pad|>", "{", "}", "{question}", "{images}", "{0.__class__}"]
FRAGMENTS += ["{:>9}", "%s", "\\1", "[7] ", "Image 9: ", "\n", " "]
hostile = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=6).map("".join)
presets = st.sampled_from(list(PRESETS.values()))
quick = settings(max_examples=80, deadline=None)
MARKER = re.compile(r"<[^<>]*>")


def words(text: str) -> str:
    """What of a hostile text must survive wherever it is quoted."""
    return re.sub(r"[^{}a-z%\\]", "", text)


@given(preset=presets, question=hostile, n=st.integers(0, 4))
@quick
def test_an_opening_has_one_mark_a_picture_and_the_question_adds_no_tag(preset, question, n):
    text = preset.open(question, n)
    assert text.count("<image>") == n
    assert MARKER.findall(text) == MARKER.findall(preset.open("", n))
    assert words(question) in words(text)


hits = st.builds(Evidence, st.just(1), hostile, hostile, thumbnail=st.sampled_from([None, THUMBNAIL]))


@given(
    preset=presets,
    tool=st.sampled_from(Tool),
    evidence=st.lists(hits, max_size=3),
    message=hostile,
    question=hostile,
    bank=st.integers(0, 3),
)
@quick
def test_a_result_is_one_block_with_one_mark_a_thumbnail(preset, tool, evidence, message, question, bank):
    outcome = Outcome.OK if evidence else Outcome.EMPTY
    result = ToolResult(outcome, renumber(evidence, 1, 1), message)
    text = preset.information(ToolRequest(tool), result, question, bank)
    shown = sum(item.thumbnail is not None for item in evidence) if preset.thumbnails else 0
    assert text.count("<image>") == shown
    assert (text.count("<information>"), text.count("</information>")) == (1, 1)
    body, after = text.removeprefix("<information>").split("</information>")
    assert MARKER.findall(body) == ["<image>"] * shown
    plain = preset.information(ToolRequest(tool), result, "", bank).split("</information>")[1]
    assert MARKER.findall(after) == MARKER.findall(plain)
    if preset.number_evidence:
        numbers = [int(n) for n in re.findall(r"^\[(\d+)\]", body, re.MULTILINE)]
        assert numbers == [*range(1, len(evidence) + 1)]
    else:
        assert not re.findall(r"^\[\d+\]", body, re.MULTILINE)
    if preset.image_captions:
        captions = [int(n) for n in re.findall(r"Image (\d+): <image>", body)]
        assert captions == [*range(bank + 1, bank + 1 + shown)]


@given(preset=presets, problem=hostile)
@quick
def test_a_complaint_quotes_the_policy_without_its_tags(preset, problem):
    assert MARKER.findall(preset.complaint(problem)) == ["<information>", "</information>"]


def test_captions_number_the_questions_pictures():
    assert "Image 1: <image>\nImage 2: <image>\nQuestion: who?" in PRESETS["extended"].open("who?", 2)
    assert PRESETS["compact"].open("who?", 1) == "<image>who?"


def test_the_papers_instructions_follow_what_was_found_and_nothing_else():
    preset, one = PRESETS["deepmmsearch_r1"], (Evidence(1, "a", "b"),)
    image = preset.information(ToolRequest(Tool.IMAGE_SEARCH), ToolResult(Outcome.OK, one), "who?")
    text = preset.information(ToolRequest(Tool.TEXT_SEARCH), ToolResult(Outcome.OK, one), "who?")
    empty = preset.information(ToolRequest(Tool.TEXT_SEARCH), ToolResult(Outcome.EMPTY), "who?")
    assert image.startswith("<information>a: b</information>\n")
    assert image != text
    assert text.endswith("The question was: who?")
    assert empty == "<information>nothing was found</information>"


def test_giving_up_is_recognised_however_it_is_spelt():
    assert gave_up(f" {GIVE_UP.capitalize()}. ")
    assert not gave_up(f"{GIVE_UP}, but perhaps ilse tarn")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_limits_of_a_preset_leave_room_for_an_answer(preset):
    assert preset.max_turns > preset.max_tool_calls or preset.name == "deepmmsearch_r1"  # "turns < 10", calls <= 10
    assert max(preset.max_image_searches, preset.max_text_searches) <= preset.max_tool_calls


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match="'mmsearch' and must be one of mmsearch_r1, deepmmsearch_r1"):
        AgentSettings(preset="mmsearch").check()
    assert AgentSettings().protocol is PRESETS["extended"]
