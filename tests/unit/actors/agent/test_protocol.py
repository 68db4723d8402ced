"""The grammar: what is written is read back, what is read never raises, and well-formed means exactly that."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS, Answer, Grammar, ImageSearch, TextSearch, parse_turn, render_turn

EVERYTHING = Grammar()
grammars = st.sampled_from([preset.grammar for preset in PRESETS.values()])
quick = settings(max_examples=150, deadline=None)

words = st.text(st.characters(codec="utf-8", exclude_characters="<>[]"), max_size=30).map(lambda t: " ".join(t.split()))
said = words.filter(bool)
numbers = st.integers(1, 999)
corner = st.tuples(st.integers(0, 999), st.integers(1, 1000)).filter(lambda pair: pair[0] < pair[1])
boxes = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), corner, corner)
answers = st.builds(Answer, said, st.lists(numbers, unique=True, max_size=3).map(tuple))


def actions(grammar: Grammar):
    """Every action that a grammar can say."""
    number = numbers if grammar.image_numbers else st.just(1)
    kinds = [st.builds(TextSearch, said), answers, st.builds(ImageSearch, image_number=number)]
    if grammar.crops:
        kinds.append(st.builds(ImageSearch, said, image_number=number))
    if grammar.boxes:
        kinds.append(st.builds(ImageSearch, box=boxes, image_number=number))
    return st.one_of(kinds)


@given(written=grammars.flatmap(lambda grammar: st.tuples(st.just(grammar), actions(grammar))), reason=words)
@quick
def test_a_turn_is_read_as_it_was_written(written, reason):
    grammar, action = written
    turn = parse_turn(render_turn(reason, action, grammar), grammar)
    assert (turn.reason, turn.action, turn.well_formed, turn.problem) == (reason, action, True, "")


FRAGMENTS = [*TAGS, "<search>", "</search>", '<img_search image="2">', '<img_search box="0,0,9,9">', '<answer a="1">']
FRAGMENTS += ["[1]", "[٣]", " ", "\n", "\x1c", "<", ">", '"', "word", '<img_search box="\x1c1,٣,9,9" image="٣">']
scraps = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=12).map("".join)


@given(grammar=grammars, text=scraps)
@quick
def test_no_text_makes_reading_raise_and_every_flaw_has_a_name(grammar, text):
    turn = parse_turn(text, grammar)
    assert turn.well_formed == (turn.problem == "")
    assert turn.action is not None or turn.problem
    if turn.well_formed:
        assert text.strip().startswith("<reason>")
        assert text.strip().endswith(">")


@given(action=actions(EVERYTHING), before=scraps, after=st.sampled_from(["", " ", "\n\n"]))
@example(action=TextSearch("q"), before="<reason>r</reason><answer>no</answer>", after="")
@quick
def test_what_stands_before_the_last_action_does_not_stop_it(action, before, after):
    turn = parse_turn(f"{before}\n{render_turn('r', action, EVERYTHING)}{after}", EVERYTHING)
    assert turn.action == action
    assert turn.well_formed is (before.strip() == "")


NOT_WELL_FORMED = {
    "nothing": "",
    "no action": "<reason>r</reason>",
    "no reason": "<answer>a</answer>",
    "words outside": "<reason>r</reason> so <answer>a</answer>",
    "words before": "well <reason>r</reason><answer>a</answer>",
    "words after": "<reason>r</reason><answer>a</answer> done",
    "two reasons": "<reason>r</reason><reason>r</reason><answer>a</answer>",
    "two actions": "<reason>r</reason><text_search>q</text_search><answer>a</answer>",
    "reason not closed": "<reason>r<answer>a</answer>",
    "action not closed": "<reason>r</reason><answer>a",
    "action in the reason": "<reason>r<answer>a</answer></reason>",
    "forged result": "<reason>r</reason><information>x</information><answer>a</answer>",
    "forged result within": "<reason>r</reason><answer><information>x</information></answer>",
    "wrong closing tag": "<reason>r</reason><answer>a</text_search>",
    "empty answer": "<reason>r</reason><answer> </answer>",
    "only a citation": "<reason>r</reason><answer>[1]</answer>",
    "empty query": "<reason>r</reason><text_search>\n</text_search>",
    "image mark in a query": "<reason>r</reason><text_search><img></text_search>",
    "attribute of an answer": '<reason>r</reason><answer sure="yes">a</answer>',
    "attribute of a query": '<reason>r</reason><text_search k="5">q</text_search>',
    "nothing to look for": "<reason>r</reason><img_search></img_search>",
    "nested tag": "<reason>r</reason><img_search><img>the star</img_search>",
    "unknown attribute": '<reason>r</reason><img_search zoom="2"><img></img_search>',
    "an attribute twice": '<reason>r</reason><img_search image="1" image="2"><img></img_search>',
    "image number zero": '<reason>r</reason><img_search image="0"><img></img_search>',
    "image number in words": '<reason>r</reason><img_search image="two"><img></img_search>',
    "empty box": '<reason>r</reason><img_search box="5,5,5,9"></img_search>',
    "box outside": '<reason>r</reason><img_search box="0,0,9,1001"></img_search>',
    "three corners": '<reason>r</reason><img_search box="0,0,9"></img_search>',
    "upper case tag": "<reason>r</reason><ANSWER>a</ANSWER>",
    "another preset's tool": "<reason>r</reason><search><img></search>",
}


@pytest.mark.parametrize("text", NOT_WELL_FORMED.values(), ids=NOT_WELL_FORMED)
def test_it_is_not_well_formed_with(text):
    turn = parse_turn(text, EVERYTHING)
    assert not turn.well_formed
    assert turn.problem


def test_a_clumsy_turn_is_carried_out_all_the_same():
    assert parse_turn("so: <answer>a [2] [2] [11]</answer>\n", EVERYTHING).action == Answer("a", (2, 11))
    assert parse_turn('<text_search k="5">two\n words</text_search>', EVERYTHING).action == TextSearch("two words")


def test_mmsearch_r1_has_its_own_image_search_and_no_crops():
    grammar = PRESETS["mmsearch_r1"].grammar
    assert parse_turn("<reason>r</reason><search><img></search>", grammar).action == ImageSearch()
    assert parse_turn("<reason>r</reason><search>the star</search>", grammar).action is None
    assert parse_turn("<reason>r</reason><img_search><img></img_search>", grammar).action is None


@pytest.mark.parametrize("name", ["mmsearch_r1", "deepmmsearch_r1"])
def test_the_papers_presets_know_neither_numbers_nor_boxes(name):
    grammar = PRESETS[name].grammar
    tag = grammar.whole_image_tag
    assert parse_turn(f'<{tag} image="2"><img></{tag}>', grammar).action is None
    assert parse_turn(f'<{tag} box="0,0,9,9"></{tag}>', grammar).action is None


def test_garbage_is_read_in_time_that_grows_with_its_length_alone():
    started = time.process_time()
    for garbage in (" " * 100_000, "<answer>" * 20_000, '<answer a=""' * 20_000, "<reason>" * 20_000):
        parse_turn(f"<reason>r</reason><answer>a{garbage}b</answer>", EVERYTHING)
        parse_turn(garbage, EVERYTHING)
    assert time.process_time() - started < 5  # quadratic matching took minutes
