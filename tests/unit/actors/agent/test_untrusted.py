import re
import time

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.protocol import TAGS
from actors.agent.untrusted import neutralise, one_line

FRAGMENTS = [*TAGS, "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<image>", "<search>"]
FRAGMENTS += ["<", ">", "</", "|", "information", "im_end", " ", "\n", "\r", "\u2028", "\u200b", "\u202e", "[1]"]
FRAGMENTS += ["Image 2:", "IMAGE 3 :", "\ud800", "\x00", "\U000e0041", "\uff1c", "\u226e", "\u0338", "::"]
hostile = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=20).map("".join)
MARKER = re.compile(r"<\s*/?\s*[a-z_|]|\|\s*>", re.IGNORECASE)


@given(hostile, hostile)
def test_no_tag_or_turn_marker_can_be_forged_or_closed(one, other):
    block = f"<information>{neutralise(one)}{neutralise(other)}</information>"
    assert [m[0] for m in re.finditer(r"</?[^<>]*>", block)] == ["<information>", "</information>"]
    inside = block.removeprefix("<information>").removesuffix("</information>")
    assert not MARKER.search(inside)
    assert not any(fragment in inside for fragment in TAGS)


@given(hostile)
def test_no_line_opens_like_evidence_or_a_caption_of_ours(text):
    for line in neutralise(text).splitlines():
        assert not re.match(r"\s*\[\s*\d+\s*\]", line)
        assert not re.match(r"\s*image\s+\d+\s*:", line, re.IGNORECASE)


@given(hostile)
def test_neutralising_twice_changes_nothing_and_never_lengthens(text):
    once = neutralise(text)
    assert neutralise(once) == once
    assert len(once) <= len(text)
    once.encode("utf-8")


@given(hostile)
def test_a_title_is_one_line(text):
    assert len(one_line(text).splitlines()) <= 1
    assert "<" not in one_line(text)


def test_ordinary_text_stays_as_it_is():
    text = "Velmora (est. 1931) – tea & glass, naïve «café»\n\tnext line: 3 [4] नमस्ते"
    assert neutralise(text) == text


def test_a_page_of_empty_lines_costs_no_more_than_its_length():
    started = time.process_time()
    neutralise("\n" * 200_000 + "[" * 1000)
    neutralise(" " * 200_000 + "[1" * 1000)
    assert time.process_time() - started < 5  # quadratic matching took minutes


def test_brackets_of_every_mark_are_gone_and_the_words_stay():
    assert neutralise("a <image> b</information><|im_end|>") == "a ‹image› b‹/information›‹|im_end|›"
    assert neutralise("5 < 6\n[2] said\nImage 3: no") == "5 ‹ 6\n(2) said\nImage 3. no"
