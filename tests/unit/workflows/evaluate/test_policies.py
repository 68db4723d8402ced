"""The baselines: what they take from the model, and what they force on it."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from actors.agent.prompts import GIVE_UP, PRESETS
from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, SegmentKind, Tool
from tests.unit.workflows.evaluate.evaluation_world import QUESTION, Finds, Scripted, play, renderer
from workflows.evaluate.arms import ARMS, POLICIES, WEIGHTS, missing_in, policy_path
from workflows.evaluate.policies import Direct, RagCrop, direct, rag, rag_crop, rag_mmsearch_r1

CROP = "<reason>a red star is unknown.</reason><img_search>red star</img_search>"
WHOLE = "<reason>a red star is unknown.</reason><img_search><img></img_search>"
QUERY = "<reason>it is Velo.</reason><text_search>Velo founder</text_search>"
ANSWER = "<reason>it is Ada.</reason><answer>Ada Lune [1]</answer>"


@pytest.fixture(scope="module")
def words():
    return renderer()


def actions(trajectory):
    return [segment for segment in trajectory.segments if segment.kind is SegmentKind.ACTION]


async def test_direct_leaves_an_answer_as_it_was_sampled(words):
    model, tools = Scripted(words, [ANSWER]), Finds()
    played = await play(direct(model, words, QUESTION), words, tools)
    assert (played.answer, tools.requests) == ("Ada Lune", [])
    assert np.array_equal(actions(played)[0].token_ids, words.action(ANSWER))


async def test_direct_keeps_the_thought_and_makes_a_searching_turn_answer(words):
    model, tools = Scripted(words, [CROP, "Ada Lune</answer>"]), Finds()
    played = await play(direct(model, words, QUESTION), words, tools)
    assert (played.answer, played.ending, played.format_ok) == ("Ada Lune", Ending.ANSWERED, True)
    assert tools.requests == []
    begun = model.histories[1][-1]
    assert words.decode(begun.token_ids).replace(" ", "") == "<reason>aredstarisunknown.</reason><answer>"
    assert model.rooms[1] == model.rooms[0] - len(begun.token_ids)  # the bound of the turn stays
    assert sum(span.end - span.start for span in actions(played)[0].spans) == len(actions(played)[0].token_ids)


@pytest.mark.parametrize(("rest", "answer"), [("Ada <text_search>Velo</text_search>", "Ada"), (QUERY, GIVE_UP)])
async def test_direct_does_not_search_even_when_the_model_insists(words, rest, answer):
    model, tools = Scripted(words, [CROP, rest]), Finds()
    played = await play(direct(model, words, QUESTION), words, tools)
    assert (played.answer, played.tool_calls, tools.requests) == (answer, (), [])


async def test_direct_that_has_no_room_for_an_answer_is_out_of_tokens(words):
    thought = "<reason>a red star is unknown.</reason>"
    room = len(words.action(thought))
    cut = await Direct(Scripted(words, [thought]), words).generate([], Sampling(max_tokens=room), deadline=1.0)
    assert (cut.stop, len(cut.token_ids)) == ("length", room)


@pytest.mark.parametrize("first", [CROP, WHOLE, QUERY, ANSWER, "no tags at all"])
async def test_rag_searches_the_whole_image_first_whatever_the_model_wants(words, first):
    model, tools = Scripted(words, [first, QUERY, ANSWER]), Finds()
    played = await play(rag(model, words, QUESTION), words, tools)
    assert [(r.tool, r.query) for r in tools.requests] == [(Tool.IMAGE_SEARCH, ""), (Tool.TEXT_SEARCH, "Velo founder")]
    assert (played.answer, played.citations, played.format_ok) == ("Ada Lune", (1,), True)


async def test_rag_asks_the_question_where_the_model_has_no_query_of_its_own(words):
    model, tools = Scripted(words, [CROP, ANSWER, ANSWER]), Finds()
    await play(rag(model, words, QUESTION), words, tools)
    assert tools.requests[1].query == QUESTION.text


async def test_rag_answers_after_two_searches_even_if_the_model_would_search_on(words):
    model, tools = Scripted(words, [CROP, QUERY, QUERY, "Ada Lune</answer>"]), Finds()
    played = await play(rag(model, words, QUESTION), words, tools)
    assert (played.answer, len(tools.requests)) == ("Ada Lune", 2)


async def test_rag_without_an_image_searches_text_alone(words):
    model, tools, bare = Scripted(words, [ANSWER, ANSWER]), Finds(), replace(QUESTION, images=())
    played = await play(rag(model, words, bare), words, tools, bare)
    assert [request.tool for request in tools.requests] == [Tool.TEXT_SEARCH]
    assert played.answer == "Ada Lune"


async def test_rag_speaks_the_tag_of_mmsearch_r1_under_its_protocol(words):
    model, tools = Scripted(words, [CROP, QUERY, ANSWER]), Finds()
    played = await play(rag_mmsearch_r1(model, words, QUESTION), words, tools, preset="mmsearch_r1")
    assert [request.tool for request in tools.requests] == [Tool.IMAGE_SEARCH, Tool.TEXT_SEARCH]
    assert played.ending is Ending.ANSWERED


async def test_a_crop_that_the_model_asks_for_is_left_as_it_was_sampled(words):
    model, tools = Scripted(words, [CROP, QUERY, ANSWER]), Finds()
    played = await play(rag_crop(model, words, QUESTION), words, tools)
    assert [(r.tool, r.query) for r in tools.requests] == [
        (Tool.IMAGE_SEARCH, "red star"), (Tool.TEXT_SEARCH, "Velo founder"),
    ]  # fmt: skip
    assert np.array_equal(actions(played)[0].token_ids, words.action(CROP))
    assert (played.answer, played.format_ok) == ("Ada Lune", True)


@pytest.mark.parametrize("first", [WHOLE, QUERY, ANSWER])
async def test_a_model_that_does_not_ask_for_a_crop_is_made_to_say_what_to_look_for(words, first):
    model, tools = Scripted(words, [first, "red star</img_search>", QUERY, ANSWER]), Finds()
    played = await play(rag_crop(model, words, QUESTION), words, tools)
    assert [(r.tool, r.query) for r in tools.requests] == [
        (Tool.IMAGE_SEARCH, "red star"), (Tool.TEXT_SEARCH, "Velo founder"),
    ]  # fmt: skip
    begun = words.decode(model.histories[1][-1].token_ids).replace(" ", "")
    thought = first.partition("</reason>")[0].replace(" ", "")
    assert begun == f"{thought}</reason><img_search>"
    assert model.rooms[1] < model.rooms[0]  # the bound of the turn stays
    assert (played.answer, played.format_ok) == ("Ada Lune", True)
    assert sum(span.end - span.start for span in actions(played)[0].spans) == len(actions(played)[0].token_ids)


@pytest.mark.parametrize(
    ("rest", "sought"),
    [
        ("<img></img_search>", ""),
        ("</img_search>", ""),
        ("<answer>Ada</answer>", ""),
        ("red star<answer>Ada</answer>", "red star"),
        ("red star", "red star"),
    ],
)
async def test_where_it_writes_nothing_to_look_for_the_whole_picture_is_searched(words, rest, sought):
    model, tools = Scripted(words, [QUERY, rest, QUERY, ANSWER]), Finds()
    played = await play(rag_crop(model, words, QUESTION), words, tools)
    assert [(r.tool, r.query) for r in tools.requests] == [
        (Tool.IMAGE_SEARCH, sought), (Tool.TEXT_SEARCH, "Velo founder"),
    ]  # fmt: skip
    assert played.answer == "Ada Lune"


async def test_a_thought_that_leaves_no_room_for_a_crop_searches_the_whole_picture(words):
    room = len(words.action("<reason>a red star is unknown.</reason>"))
    model = Scripted(words, ["<reason>a red star is unknown.</reason>"])
    turn = await RagCrop(model, words, QUESTION, PRESETS["compact"].grammar).generate(
        [], Sampling(max_tokens=room), deadline=1.0
    )
    assert words.decode(turn.token_ids).replace(" ", "").endswith("<img_search><img></img_search>")


async def test_a_crop_without_an_image_is_a_text_search_alone(words):
    model, tools, bare = Scripted(words, [QUERY, ANSWER]), Finds(), replace(QUESTION, images=())
    await play(rag_crop(model, words, bare), words, tools, bare)
    assert [request.tool for request in tools.requests] == [Tool.TEXT_SEARCH]


def test_an_arm_says_what_a_protocol_lacks_for_it():
    assert missing_in(ARMS["rag_crop"], "mmsearch_r1")
    assert not missing_in(ARMS["rag_crop"], "deepmmsearch_r1")
    assert not missing_in(ARMS["rag"], "mmsearch_r1")


async def test_a_model_that_never_stops_is_forced_to_search_all_the_same_and_then_is_out_of_tokens(words):
    model, tools = Scripted(words, ["star " * 50] * 3, stop="length"), Finds()
    played = await play(rag(model, words, QUESTION), words, tools)
    assert (len(tools.requests), played.ending) == (2, Ending.OUT_OF_TOKENS)


def test_every_arm_names_weights_and_a_policy_that_can_be_imported():
    for arm in ARMS.values():
        assert arm.weights in WEIGHTS
        assert arm.policy == "" or arm.policy in POLICIES
        for preset in PRESETS:
            path = policy_path(arm, preset)
            assert (path is None) == (arm.policy == "")
            if path:
                module, _, name = path.rpartition(".")
                assert callable(getattr(importlib.import_module(module), name))
