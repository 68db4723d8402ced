"""A turn that is read while it is written."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.agent.protocol import Answer, Grammar, parse_turn
from workflows.serve.partial import Growing, answer_of, content_of, first_stop, longest_beginning, reasoning_of

TURN = "<reason>I see a red star. It is [not] known.</reason><answer>Ilse Tarn, in 1931 [2][14]</answer>"
CITATION = re.compile(r"\s*\[(\d{1,3})\]")

FRAGMENTS = [
    "<reason>",
    "</reason>",
    "<answer>",
    "</answer>",
    '<answer a="1">',
    "<answers",
    "<text_search>",
    "</answer",
]
FRAGMENTS += [
    "</text_search>",
    "<img>",
    "<search>",
    "</search>",
    "<information>",
    "<",
    "</",
    "[1]",
    "[",
    "[12",
    "[1234]",
]
FRAGMENTS += [" ", "\n", "a < b", "Ilse", "é", "星", "\ufffd", "1", "]", "a", "answer"]
pieces = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=12).map("".join)
words = st.lists(
    st.sampled_from(["Ilse", " ", "\n", "[1]", " [23]", "[x]", "5 < 6", "星", "<b>", "<answers>", "[", "]", "a"]),
    max_size=8,
).map("".join)
answering = st.builds(
    "<reason>{}</reason>{}<answer>{}</answer>{}".format,
    words,
    st.sampled_from(["", "\n"]),
    words,
    st.sampled_from(["", " "]),
)


def readings(text, read):
    """What is read after each character."""
    return [read(text[:end]) for end in range(len(text) + 1)]


@given(st.one_of(pieces, answering))
@example("<answer>x <answer")
@example("<answer>x</answer\ufffd")
@pytest.mark.parametrize("read", [reasoning_of, content_of])
def test_what_was_read_stays_whatever_comes(read, text):
    told = ""
    for now in readings(text, read):
        assert now.startswith(told)
        told = now


@given(answering)
def test_what_is_read_early_of_an_answer_is_a_beginning_of_what_the_protocol_takes_for_it(text):
    turn = parse_turn(text, Grammar())
    if isinstance(turn.action, Answer) and turn.well_formed:
        whole = answer_of(text)
        assert all(whole.startswith(now) for now in readings(text, content_of))
        assert content_of(text) == whole
        assert reasoning_of(text, ended=True) == turn.reason


@given(st.one_of(pieces, answering))
@example("<answer>a</answer><text_search>q</text_search>")
@example("<answer>foo<answer>bar</answer>")
@example("<answer>foo<search>bar</answer>")
def test_of_a_finished_turn_the_answer_is_the_protocol_s_with_its_citations_in_place(text):
    action = parse_turn(text, Grammar()).action
    body = answer_of(text)
    if isinstance(action, Answer):
        assert " ".join(CITATION.sub(" ", " ".join(body.split())).split()) == action.text
        assert tuple(dict.fromkeys(int(n) for n in CITATION.findall(body))) == action.citations
    else:
        assert not CITATION.sub("", body).strip()


def test_it_is_read_as_soon_as_it_is_sure():
    begun = TURN.index("Ilse")
    assert content_of(TURN[: begun + 4]) == "Ilse"
    assert content_of(TURN[: begun + len("Ilse Tarn, in 1931 [2]")]) == "Ilse Tarn, in 1931 [2]"
    assert reasoning_of(TURN[: len("<reason>I see")]) == "I see"


@given(st.integers(0, len(TURN)))
def test_no_part_of_a_tag_and_no_half_citation_is_read(cut):
    content, reasoning = content_of(TURN[:cut]), reasoning_of(TURN[:cut])
    assert "<" not in reasoning + content
    assert not re.search(r"\[\d*\Z", content)
    assert content == content.strip()


def test_half_a_character_waits_for_its_other_half():
    encoded = "<reason>sternförmig</reason><answer>星の王 [1]</answer>".encode()
    for read in (reasoning_of, content_of):
        told = ""
        for end in range(len(encoded) + 1):
            now = read(encoded[:end].decode("utf-8", "replace"))
            assert "\ufffd" not in now
            assert now.startswith(told)
            told = now


@pytest.mark.parametrize(
    "turn",
    [
        "<reason>Unknown.</reason><text_search>who</text_search>",
        "<reason>Unknown.</reason><img_search><img></img_search>",
        "<reason>It says <answer>x</answer></reason><text_search>who</text_search>",
        "words <answer>x</answer>",  # malformed: told when it has ended
        "<reason>open <answer>x</answer>",
        "<answer>[1] [2]</answer>",
    ],
)
def test_nothing_is_content_early_but_an_answer_of_a_turn_that_is_well_formed_so_far(turn):
    assert set(readings(turn, content_of)) == {""}


def test_a_turn_of_nothing_but_spaces_or_brackets_costs_no_more_than_its_length():
    started = time.process_time()
    for text in (" " * 200_000, "<reason>" + " " * 200_000 + "x", "<answer>" + " " * 200_000 + "x", "<" * 20_000):
        for read in (reasoning_of, content_of, answer_of):
            read(text)
    assert time.process_time() - started < 2  # quadratic matching takes minutes


# --- a text that only grows -------------------------------------------------------------------------------------

letters = st.text(alphabet="ab\n ", max_size=30)
stops = st.lists(st.text(alphabet="ab\n ", min_size=1, max_size=4), max_size=4)


def cut_as_sampled(text, stop):
    """Sampling ends with the character that completes a stop string; the text ends where that string began."""
    for end in range(len(text) + 1):
        whole = [one for one in stop if text[:end].endswith(one)]
        if whole:
            return text[: end - max(map(len, whole))]
    return text


@given(letters, stops, st.lists(st.integers(0, 30), max_size=8))
@example("aab", ["aab"], [2])
@example("aab", ["aabb", "b"], [1, 2])
def test_a_stop_string_is_never_told_however_the_text_comes(text, stop, cuts):
    growing, told = Growing(stop), ""
    for end in [*sorted(cuts), len(text)]:
        told += growing.reads(text[:end])
        assert cut_as_sampled(text, stop).startswith(told)
        assert told == growing.told
    told += growing.settle()
    assert told == cut_as_sampled(text, stop) == growing.told
    assert growing.stopped == (told != text or any(one in text for one in stop))


@given(letters, stops)
def test_no_more_is_held_than_may_become_a_stop_string(text, stop):
    held = longest_beginning(text, stop)
    assert held == 0 or any(one.startswith(text[-held:]) for one in stop)
    if first_stop(text, stop) is None and held < len(text):
        assert not any(one.startswith(text[-n:]) for one in stop for n in range(held + 1, len(text)) if n < len(one))


def test_what_turns_out_otherwise_begins_anew_after_an_empty_line_and_nothing_is_taken_back():
    growing = Growing()
    assert growing.reads("Ilse") == "Ilse"
    assert growing.reads("Ada") == ""  # it may still be that the turn ends otherwise
    assert growing.reads("Ada Lune", ended=True) == "\n\nAda Lune"
    growing.begin()
    assert growing.reads("so it is") == "\n\nso it is"
    assert growing.told == growing.said == "Ilse\n\nAda Lune\n\nso it is"
