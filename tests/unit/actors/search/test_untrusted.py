import re

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.protocol import TAGS
from actors.search.untrusted import bounded, content_sha256, one_line, sanitise

FRAGMENTS = [*TAGS, "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<image>", "<search>"]
FRAGMENTS += ["<", ">", "</", "|", "information", "im_end", " ", "\n", "\r", "\u2028", "\u200b", "\u202e", "[1]"]
FRAGMENTS += ["Image 2:", "IMAGE 3 :", "\ud800", "\x00", "\U000e0041", "\uff1c", "\u226e", "\u0338", "::"]
hostile = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=20).map("".join)
MARKER = re.compile(r"<\s*/?\s*[a-z_|]|\|\s*>", re.IGNORECASE)


@given(hostile, hostile)
def test_no_tag_or_turn_marker_can_be_forged_or_closed(one, other):
    block = f"<information>{sanitise(one)}{sanitise(other)}</information>"
    assert [m[0] for m in re.finditer(r"</?[^<>]*>", block)] == ["<information>", "</information>"]
    inside = block.removeprefix("<information>").removesuffix("</information>")
    assert not MARKER.search(inside)
    assert not any(fragment in inside for fragment in TAGS)


@given(hostile)
def test_no_line_opens_like_evidence_or_a_caption_of_ours(text):
    for line in sanitise(text).splitlines():
        assert not re.match(r"\s*\[\s*\d+\s*\]", line)
        assert not re.match(r"\s*image\s+\d+\s*:", line, re.IGNORECASE)


@given(hostile)
def test_neutralising_twice_changes_nothing_and_never_lengthens(text):
    once = sanitise(text)
    assert sanitise(once) == once
    assert len(once) <= len(text)
    once.encode("utf-8")


@given(hostile)
def test_a_title_is_one_line(text):
    assert len(one_line(text).splitlines()) <= 1
    assert "<" not in one_line(text)


def test_ordinary_text_stays_as_it_is():
    text = "Velmora (est. 1931) – tea & glass, naïve «café»\n\tnext line: 3 [4] नमस्ते"
    assert sanitise(text) == text


@given(st.text(max_size=80), st.integers(1, 40))
def test_bounded_text_is_never_longer_than_its_bound(text, most):
    assert len(bounded(text, most)) <= most


def test_a_cut_falls_between_words_and_shows():
    assert bounded("one two three four", 12) == "one two…"
    assert bounded("one two three four", 14) == "one two three…"
    assert bounded("abcdefghijkl", 5) == "abcd…"
    assert bounded("  short  ", 10) == "short"


def test_the_content_hash_is_of_what_was_retrieved_and_takes_any_string():
    assert content_sha256("a<b") != content_sha256("a‹b")
    assert len(content_sha256("\ud800")) == 64
