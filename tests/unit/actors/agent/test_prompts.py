"""What the model reads: marks match pictures, numbers run on, and what others wrote stays words."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.prompts import GIVE_UP, PRESETS, gave_up, renumber
from actors.agent.protocol import TAGS
from actors.agent.settings import AgentSettings
from actors.agent.trajectory import Evidence, ImageRef, Outcome, Tool, ToolRequest, ToolResult
from cluster.config import load
from cluster.errors import UserError

PICTURE, CROP, THUMBNAIL = ImageRef("a" * 64, 200, 100), ImageRef("b" * 64, 20, 30), ImageRef("c" * 64, 60, 60)
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
    crop=st.booleans(),
)
@quick
def test_a_result_is_one_block_with_one_mark_a_picture(preset, tool, evidence, message, question, bank, crop):
    outcome = Outcome.OK if evidence else Outcome.EMPTY
    result = ToolResult(outcome, renumber(evidence, 1, 1), message)
    if crop:
        result = replace(result, crop=CROP, crop_box=(0, 0, 20, 30))
    request = ToolRequest(tool, image=PICTURE if tool is Tool.IMAGE_SEARCH else None)
    text = preset.information(request, result, question, bank)
    shown = sum(item.thumbnail is not None for item in evidence) if preset.thumbnails else 0
    shown += crop and preset.return_crops and tool is Tool.IMAGE_SEARCH
    assert len(preset.shown(request, result).images) == shown
    assert text.count("<image>") == shown
    assert (text.count("<information>"), text.count("</information>")) == (1, 1)
    body, after = text.removeprefix("<information>").split("</information>")
    assert MARKER.findall(body) == ["<image>"] * shown
    plain = preset.information(request, result, "", bank).split("</information>")[1]
    assert MARKER.findall(after) == MARKER.findall(plain)
    if preset.number_evidence:
        numbers = [int(n) for n in re.findall(r"^\[(\d+)\]", body, re.MULTILINE)]
        assert numbers == [*range(1, len(evidence) + 1)]
    else:
        assert not re.findall(r"^\[\d+\]", body, re.MULTILINE)
    if preset.image_captions:
        captions = [int(n) for n in re.findall(r"Image (\d+): <image>", body)]
        assert captions == [*range(bank + 1, bank + 1 + shown)]


@given(preset=presets, evidence=st.lists(hits, max_size=4), crop=st.booleans(), room=st.integers(-1, 6))
@quick
def test_where_there_is_little_room_the_first_pictures_are_shown_and_every_hit_stays(preset, evidence, crop, room):
    result = ToolResult(Outcome.OK, tuple(evidence))
    if crop:
        result = replace(result, crop=CROP, crop_box=(0, 0, 20, 30))
    request = ToolRequest(Tool.IMAGE_SEARCH, image=PICTURE)
    all_of_it, some = preset.shown(request, result), preset.shown(request, result, room)
    assert some.images == all_of_it.images[: max(0, room)]
    assert [replace(item, thumbnail=None) for item in some.evidence] == [
        replace(item, thumbnail=None) for item in evidence
    ]
    assert preset.shown(request, some) == some


def test_a_crop_says_where_it_was_cut_out_in_thousandths_before_the_hits():
    result = ToolResult(Outcome.OK, (Evidence(1, "a", "b", thumbnail=THUMBNAIL),), crop=CROP, crop_box=(21, 3, 41, 33))
    request = ToolRequest(Tool.IMAGE_SEARCH, "the star", PICTURE, image_number=2)
    extended = PRESETS["extended+crops"].information(request, result, "who?", 4)
    assert extended == (
        "<information>Image 5: <image> cut from image 2, box 105,30,205,330\n[1] a: b Image 6: <image></information>"
    )
    compact = PRESETS["compact+crops"].information(request, result, "who?", 4)
    assert compact == "<information><image> cut from image 2, box 105,30,205,330\n[1] a: b</information>"


def test_the_model_is_told_of_crops_only_where_they_are_returned():
    assert "cut out comes before them, as a further picture" in PRESETS["extended+crops"].open("who?", 1)
    plain = PRESETS["extended"].open("who?", 1)
    assert "further picture" not in plain
    assert "inside <information>...</information>. If nothing helps" in plain


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


@pytest.mark.parametrize("preset", ["extended", "compact"])
def test_returning_crops_is_a_preset_of_its_own_with_the_same_grammar_and_limits(preset):
    settings = AgentSettings(preset, return_crops=True)
    settings.check()
    protocol = settings.protocol
    assert PRESETS[protocol.name] is protocol
    assert protocol.return_crops
    before = PRESETS[preset]
    assert replace(protocol, name=preset, opening=before.opening, return_crops=False) == before


@pytest.mark.parametrize("preset", ["mmsearch_r1", "deepmmsearch_r1", "compact_whole"])
def test_crops_are_refused_to_presets_whose_policies_can_do_nothing_with_them(preset):
    with pytest.raises(
        UserError, match=rf"return_crops is true, but under preset {preset} .* for extended and compact"
    ):
        load(AgentSettings, None, [f"preset={preset}", "return_crops=true"])
    assert not load(AgentSettings, None, [f"preset={preset}"]).protocol.return_crops


def test_there_is_one_way_to_ask_for_crops():
    with pytest.raises(
        UserError, match="must be one of mmsearch_r1, deepmmsearch_r1, extended, compact, compact_whole"
    ):
        load(AgentSettings, None, ["preset=extended+crops"])
