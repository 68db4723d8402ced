"""What a client is told of an episode while it is played, and that it is the same as what it reads in the end."""

import asyncio
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.episode import Limits
from actors.agent.seams import GenerationFailed
from actors.agent.trajectory import Ending, Evidence, Outcome, ToolResult
from tests.unit.actors.agent.stage import CROP, PICTURE, THUMBNAIL, WHOLE, Tools, ask, found, play, say
from tests.unit.workflows.serve.told import tell
from workflows.serve.answers import ANSWERED_WITHOUT, Reached
from workflows.serve.errors import ApiError
from workflows.serve.reports import Reporter

CITED = "<reason>It is in [1].</reason><answer>Ilse Tarn [1], in 1931</answer>"
DOWN = ToolResult(Outcome.INFRA_ERROR, message="nobody answers")
SPENT = ToolResult(Outcome.REFUSED, message="the budget is spent")

phrases = st.lists(
    st.sampled_from(["Ilse", " ", "\n", "[1]", " [2]", "5 < 6", "星", "<answers>", "[", "ab", "b"]), max_size=6
).map("".join)
tags = st.sampled_from(["<reason>", "</reason>", "<answer>", "</answer>", "<text_search>", "</text_search>", "<img>"])
turns = st.one_of(
    st.builds("<reason>{}</reason><answer>{}</answer>".format, phrases, phrases),
    st.builds("<reason>{}</reason><text_search>{}</text_search>".format, phrases, phrases),
    st.builds("<reason>r</reason><answer>{}</answer><text_search>q</text_search>".format, phrases),
    st.lists(st.one_of(tags, phrases), max_size=8).map("".join),
)
stops = st.lists(st.sampled_from(["ab", "b", "\n", "[1]", "Ilse 5", "(", "."]), max_size=3)


@settings(max_examples=50)
@given(
    st.lists(turns, min_size=8, max_size=8),
    stops,
    st.integers(1, 7),
    st.sampled_from([None, DOWN]),
    st.sampled_from([4000, 60]),
)
def test_the_pieces_of_content_are_the_content_and_no_stop_string_is_in_it(lines, stop, pace, result, most):
    tools = Tools(*[result] * 8) if result else Tools()
    told = tell(*lines, tools=tools, stop=stop, pace=pace, limits=Limits(max_turn_tokens=most))
    assert told.texts("content") == told.choice.content
    assert told.texts("reasoning") == told.choice.reasoning
    assert not any(one in told.choice.content for one in stop)
    for note in (annotation["url_citation"] for annotation in told.choice.annotations):
        assert re.fullmatch(r"\[\d+\]", told.choice.content[note["start_index"] : note["end_index"]])
    json.dumps(told.reports)


@settings(max_examples=50)
@given(phrases, phrases, stops, st.integers(1, 7))
def test_whether_somebody_listens_changes_nothing_of_an_answer(thought, answer, stop, pace):
    lines = [ask(), f"<reason>{thought}</reason><answer>Ilse {answer}</answer>"]
    listened, plain = tell(*lines, stop=stop, pace=pace), tell(*lines, stop=stop, pace=0)
    assert (listened.choice, plain.reports) == (plain.choice, [])


def test_steps_come_as_they_happen_with_the_thought_before_them():
    crop = found("the star of Velmora", crop=CROP)
    told = tell(
        "<reason>a star</reason><img_search>red star</img_search>", CITED, tools=Tools(crop), preset="extended+crops"
    )
    kinds = [report["type"] for report in told.reports if report["type"] not in ("reasoning", "content")]
    assert kinds == ["turn", "search", "result", "turn"]
    order = [report["type"] for report in told.reports]
    assert order.index("reasoning") < order.index("search")
    assert order.index("content") > order.index("result")
    search, result = told.steps("search", "result")
    assert search == {
        "type": "search",
        "turn": 1,
        "tool": "image_search",
        "expression": "red star",
        "box": None,
        "image": 1,
    }
    assert (result["outcome"], result["crop_box"], result["crop"], result["image"]) == (
        "ok",
        [10, 20, 30, 40],
        CROP.sha256,
        1,
    )
    assert result["evidence"][0]["text"] == "the star of Velmora"
    assert [step["type"] for step in told.choice.steps] == [
        "turn",
        "reasoning",
        "search",
        "result",
        "turn",
        "reasoning",
    ]
    assert told.choice.steps[1] == {"type": "reasoning", "turn": 1, "text": "a star"}
    assert (told.texts("reasoning"), told.texts("content")) == ("a star\n\nIt is in [1].", "Ilse Tarn [1], in 1931")


def test_every_turn_is_told_while_it_is_written_though_it_thinks_as_the_one_before():
    told = tell(ask(), ask(), "<reason>rest</reason><answer>a</answer>")
    assert told.texts("reasoning") == "r\n\nr\n\nrest"
    assert [report["text"] for report in told.reports if report["type"] == "reasoning"][-4:] == ["\n\nr", "e", "s", "t"]


def test_a_turn_that_cannot_be_carried_out_is_told_as_a_problem():
    told = tell("no tags", say())
    assert told.steps("problem") == [{"type": "problem", "turn": 1, "message": "no action at the end of the turn"}]


def test_an_answer_that_was_told_and_turns_out_to_be_none_stays_and_the_next_comes_after_an_empty_line():
    told = tell("<reason>r</reason><answer>Ada</answer><text_search>q</text_search>", CITED)
    assert told.choice.content == told.texts("content") == "Ada\n\nIlse Tarn [1], in 1931"
    note = told.choice.annotations[0]["url_citation"]
    assert told.choice.content[note["start_index"] : note["end_index"]] == "[1]"
    assert (
        tell("<reason>r</reason><answer>Ada</answer><text_search>q</text_search>", CITED, pace=0).choice.content
        == "Ilse Tarn [1], in 1931"
    )


def test_an_answer_that_begins_twice_in_one_turn_is_told_anew_when_the_turn_has_ended():
    told = tell("<reason>r</reason><answer>Ada<answer>Ilse</answer>")
    assert told.trajectory.answer == "Ilse"
    assert told.choice.content == told.texts("content") == "Ada\n\nIlse"


def test_an_answer_that_is_cut_off_ends_with_what_was_written_of_it():
    line = "<reason>r</reason><answer>It was founded by Ilse Tarn [1"
    for pace in (0, 1, 5):
        told = tell(ask("q"), line + "1] in 1931</answer>", pace=pace, limits=Limits(max_turn_tokens=len(line)))
        assert told.trajectory.ending is Ending.OUT_OF_TOKENS
        assert (told.choice.content, told.choice.finish_reason) == ("It was founded by Ilse Tarn", "length")


def test_a_stop_string_ends_the_content_and_is_the_reason():
    told = tell("<reason>r</reason><answer>one, two, three</answer>", stop=[", t", "zzz"])
    assert (told.choice.content, told.choice.finish_reason) == ("one", "stop")
    line = "<reason>r</reason><answer>one, two, th"
    told = tell(line + "ree</answer>", stop=[", t"], limits=Limits(max_turn_tokens=len(line)))
    assert (told.choice.content, told.choice.finish_reason) == ("one", "stop")


@pytest.mark.parametrize("pace", [0, 1])
def test_when_every_search_failed_the_answer_says_so_and_so_do_steps_and_choice(pace):
    told = tell(ask(), ask("other"), say("Ilse Tarn"), tools=Tools(DOWN, SPENT), pace=pace)
    assert told.choice.content == f"Ilse Tarn\n\n{ANSWERED_WITHOUT}"
    assert told.choice.search_unavailable
    assert told.choice.steps[-1]["type"] == "notice"
    assert told.choice.steps[-1]["reason"] == "search_unavailable"
    if pace:
        assert told.texts("content") == told.choice.content
        assert told.steps("notice") == [told.choice.steps[-1]]


def test_a_search_that_found_something_or_none_at_all_is_no_unavailable_one():
    one = tell(ask(), ask(), say(), tools=Tools(DOWN, ToolResult(Outcome.EMPTY)))
    none = tell(say())
    refused = tell('<reason>r</reason><img_search image="7"><img></img_search>', say())
    for told in (one, none, refused):
        assert not told.choice.search_unavailable
        assert ANSWERED_WITHOUT not in told.choice.content
        assert not told.steps("notice")


def test_an_episode_without_an_answer_says_why_and_what_was_found():
    pages = [found("Ilse Tarn founded it [12] in\n1931"), found("nothing [1] of use")]
    told = tell(ask(), ask(), ask(), tools=Tools(*pages), preset="mmsearch_r1", pace=3)
    assert told.choice.finish_reason == "max_turns"
    assert told.choice.content.splitlines() == [
        "There is no answer within 3 turns. What was found:",
        "[1] velmora: Ilse Tarn founded it (12) in 1931",
        "[2] velmora: nothing (1) of use",
    ]
    assert len(told.choice.annotations) == 2  # what a page calls [1] is no citation of ours


def test_a_bound_that_was_reached_is_told_as_a_notice_and_in_place_of_an_answer():
    reached = Reached("max_cost", "The request's bound of 1 USD is reached.")
    told = tell(ask(), say(), reached=reached)
    assert told.steps("notice") == [{"type": "notice", "reason": "max_cost", "message": reached.says}]
    assert (told.choice.content, told.choice.finish_reason) == ("ilse tarn", "max_cost")


def test_a_request_out_of_time_ends_with_what_is_known_and_an_engine_that_failed_is_an_error():
    late = Reached("max_seconds", "There was no answer within 3 s.")
    told = tell(ask(), GenerationFailed("aborted"), reached=late)
    assert told.choice.finish_reason == "max_seconds"
    assert told.choice.content.startswith("There was no answer within 3 s. What was found:\n[1] ")
    with pytest.raises(ApiError) as caught:
        tell(ask(), GenerationFailed("dead"))
    assert caught.value.status == 503
    with pytest.raises(ApiError) as caught:
        tell(say(), limits=Limits(max_total_tokens=10))
    assert caught.value.status == 400


def test_what_was_written_of_an_answer_when_the_time_was_over_is_kept():
    class Dies:
        async def generate(self, segments, sampling, *, deadline):
            reporter.wrote("<reason>r</reason><answer>Ilse Ta")
            raise GenerationFailed("aborted")

    reports = []
    reporter = Reporter(reports.append)
    trajectory = asyncio.run(play(Dies(), observer=reporter))
    choice = reporter.conclude(trajectory, Reached("max_seconds", "There was no answer within 3 s."))
    assert (choice.content, choice.finish_reason) == ("Ilse Ta", "max_seconds")
    assert "".join(report["text"] for report in reports if report["type"] == "content") == choice.content


def test_pictures_are_named_by_their_hash_and_shown_only_where_they_were_asked_for():
    page = found("a page", thumbnail=THUMBNAIL, crop=CROP)
    asked = {THUMBNAIL.sha256: "data:image/jpeg;base64,AA", PICTURE.sha256: "data:image/jpeg;base64,BB"}
    shown = tell(WHOLE, say(), tools=Tools(page), thumbnails=asked).steps("result")[0]
    assert shown["thumbnails"] == {THUMBNAIL.sha256: "data:image/jpeg;base64,AA"}  # of this result alone
    assert shown["evidence"][0]["thumbnail"] == THUMBNAIL.sha256
    plain = tell(WHOLE, say(), tools=Tools(page)).steps("result")[0]
    assert "thumbnails" not in plain
    assert plain["evidence"][0]["thumbnail"] == THUMBNAIL.sha256


def test_what_providers_say_is_one_bounded_line_and_only_addresses_of_the_web_are_passed_on():
    rude = ToolResult(
        Outcome.OK,
        (Evidence(1, "t", "x", url="javascript:alert(1)"), Evidence(2, "t", "x", url="HTTPS://web.example/a")),
        message="bad\ud800\nkey " + "x" * 2000,
    )
    result = tell(ask(), say(), tools=Tools(rude)).steps("result")[0]
    assert result["message"].startswith("bad key xxx")
    assert len(result["message"]) == 500
    assert [item["url"] for item in result["evidence"]] == ["", "HTTPS://web.example/a"]


def test_usage_counts_what_was_read_and_what_was_written_and_paid():
    paid = ToolResult(Outcome.OK, (Evidence(1, "t", "x"),), cost_usd=0.25)
    told = tell(ask(), say(), tools=Tools(paid))
    prompt, first, page, second = told.trajectory.segments
    choice = told.choice
    assert (choice.question_tokens, choice.found_tokens) == (prompt.expanded_length, page.expanded_length)
    assert choice.completion_tokens == len(first.token_ids) + len(second.token_ids)
    assert (choice.tool_calls, choice.cost_usd, choice.version) == (1, 0.25, 3)
