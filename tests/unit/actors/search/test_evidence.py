from hypothesis import given
from hypothesis import strategies as st

from actors.search.evidence import bounded, content_sha256


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
