import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.pages.extractive import LONGEST, ExtractiveSummariser, sentences, summary
from actors.search.seams import Page
from cluster.errors import UserError

PAGE = """# Velmora

* [Home](https://velmora.example/) | [Log in](https://velmora.example/login)
![the logo](https://velmora.example/logo.png)
Velmora is a maker of glass in the town of Dorn. Visitors are welcome on Sundays.
It was started by Dr. I. Tarn, a chemist, in 1931. The **U.S.** branch closed early.
The prices of its glass rose for years. Velmora moved to Ostra after the flood.
Read more about our biscuits (cookies) in the rules.
"""


def test_the_sentences_that_bear_on_the_question_are_kept_in_the_pages_order():
    assert summary(PAGE, "who started Velmora, the maker of glass", 3, 1000) == (
        "Velmora is a maker of glass in the town of Dorn. It was started by Dr. I. Tarn, a chemist, in 1931."
        " Velmora moved to Ostra after the flood."
    )


def test_a_sentence_after_one_that_names_the_subject_is_worth_more_than_one_about_something_else():
    text = "The sea is deep here. Ilse Tarn studied in Prell. She died in 1960. The moon is far away."
    assert summary(text, "Ilse Tarn", 2, 1000) == "Ilse Tarn studied in Prell. She died in 1960."


def test_words_of_one_root_are_one_word():
    text = "A dog ran by. Norvane was founded in 1950. A cat sat still."
    assert summary(text, "founder", 1, 1000) == "Norvane was founded in 1950."


def test_words_that_are_everywhere_on_the_page_count_little():
    text = " ".join(f"Glass number {i} is made of glass." for i in range(20)) + " Its inventor was Tarn, says the list."
    assert "Tarn" in summary(text, "inventor of the glass", 1, 1000)


def test_what_only_repeats_the_question_is_not_an_answer():
    text = "Founder of Velmora\nFounder of Velmora: Ilse Tarn\n"
    assert summary(text, "founder of Velmora", 2, 1000) == "Founder of Velmora: Ilse Tarn"


def test_nothing_is_said_about_something_else_once_something_fits():
    assert summary(PAGE, "biscuits", 5, 1000) == "Read more about our biscuits (cookies) in the rules."


def test_a_page_that_shares_no_word_with_the_question_is_summarised_by_its_first_sentences():
    assert summary(PAGE, "zzqx", 1, 1000) == "Velmora is a maker of glass in the town of Dorn."


def test_what_a_page_repeats_is_said_once():
    assert summary("Tarn was here first. " * 9, "Tarn", 5, 1000) == "Tarn was here first."


def test_a_sentence_that_does_not_fit_gives_way_to_a_shorter_one():
    text = "Tarn and Tarn and Tarn went a long way through many a town. Tarn went home alone."
    assert summary(text, "Tarn way", 5, 65) == "Tarn and Tarn and Tarn went a long way through many a town."
    three = f"{text} Tarn ate."
    assert summary(three, "Tarn way", 5, 70) == "Tarn and Tarn and Tarn went a long way through many a town. Tarn ate."


def test_the_best_sentence_alone_is_cut_to_fit():
    cut = summary("Velmora was founded by Ilse Tarn in the year 1931.", "Velmora", 5, 20)
    assert cut == "Velmora was founded…"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One here. Two here.", ["One here.", "Two here."]),
        ("Ask Mr. Tarn or Dr. Orne, e.g. Now go.", ["Ask Mr. Tarn or Dr. Orne, e.g. Now go."]),
        ("J. R. Tarn wrote it. He left.", ["J. R. Tarn wrote it.", "He left."]),
        ("It cost 3.50 in v1.2 of it. Cheap!", ["It cost 3.50 in v1.2 of it.", "Cheap!"]),
        ('"Who?" he said. "I." So be it!?', ['"Who?"', "he said.", '"I."', "So be it!?"]),
        ("In 1931. Then came 1932.", ["In 1931.", "Then came 1932."]),
        ("the approx. value was small. ok", ["the approx. value was small. ok"]),
        ("Wait... There is more", ["Wait...", "There is more"]),
        ("它由伊尔泽创立。总部在多恩！在哪里？", ["它由伊尔泽创立。", "总部在多恩！", "在哪里？"]),
        ("「はい。」と言った。", ["「はい。」", "と言った。"]),
        ("A line that\nis wrapped. Next", ["A line that is wrapped.", "Next"]),
        ("Founder\nIlse Tarn", ["Founder", "Ilse Tarn"]),
        ("1. Take glass. Break it.", ["1. Take glass.", "Break it."]),
        ("## Head\n- item one\n-5 degrees\n---\n***\n| a | b |", ["Head", "item one", "-5 degrees", "a | b |"]),
        ("[a [b](http://x.example) c", ["[a b c"]),
        ("", []),
        ("... !!! \n\n ---", []),
    ],
)
def test_sentences_end_where_they_end(text, expected):
    assert list(sentences(text)) == expected


def test_text_without_stops_is_cut_between_words():
    pieces = list(sentences("glass " * 1000))
    assert all(len(piece) <= LONGEST for piece in pieces)
    assert " ".join(pieces).split() == ["glass"] * 1000


def test_questions_in_scripts_without_spaces_find_their_sentences():
    text = "总部在多恩的市中心。它由伊尔泽于一九三一年创立。今天天气很好。"
    assert summary(text, "由谁创立", 1, 1000) == "它由伊尔泽于一九三一年创立。"


words = st.sampled_from(
    ["Tarn", "glass", "Mr.", "e.g.", "1931.", "sea.", "who?", "\n", "。", "[a](b)", "**", "… ", "x" * 90]
)
prose = st.one_of(st.lists(words, max_size=80).map(" ".join), st.text(max_size=300))


@given(text=prose, question=prose, most=st.integers(1, 6), chars=st.integers(0, 300))
def test_a_summary_is_bounded_repeatable_and_made_of_the_pages_own_sentences(text, question, most, chars):
    said = summary(text, question, most, chars)
    assert len(said) <= chars
    assert said == summary(text, question, most, chars)
    own = list(dict.fromkeys(sentences(text)))
    cut_short = said.endswith("…") and any(sentence.startswith(said[:-1]) for sentence in own)
    assert cut_short or chars < 2 or made_of(said, own)


def made_of(said, own):
    """Whether `said` is some of the sentences of `own`, in their order."""
    if not said:
        return True
    return any(
        said == sentence or (said.startswith(f"{sentence} ") and made_of(said[len(sentence) + 1 :], own[i + 1 :]))
        for i, sentence in enumerate(own)
    )


N = 30_000
HOSTILE = {
    "stops": "." * N, "dotted": ".x" * (N // 2), "runs": ("." * 50 + "x") * (N // 51), "quotes": '."' * (N // 2),
    "brackets": "[" * N, "open links": "![a](x" * (N // 6), "long names": ("[" + "a" * 299) * (N // 300),
    "long links": ("[a](" + "x" * 2000) * (N // 2004), "empty lines": "\n" * N, "wrapped": "a\nb" * (N // 3),
    "one word": "a" * N, "no spaces": "星" * N, "bold": "*" * N, "rules": "- " * (N // 2), "initials": "A. " * (N // 3),
    "spaces": " " * N, "surrogates": "\ud800. " * (N // 3), "terms": "Tarn " * (N // 5), "tags": "<" * N,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_takes_no_longer_than_its_length_allows(name):
    half = HOSTILE[name][: N // 2]

    def seconds(text):
        best = float("inf")
        for _ in range(2):
            began = time.process_time()
            summary(text, "who is Tarn 星星", 5, 1000)
            best = min(best, time.process_time() - began)
        return best

    whole = seconds(HOSTILE[name])
    assert whole < 0.5  # quadratic patterns took many seconds
    assert whole < 3 * seconds(half) + 0.05


async def test_the_summariser_looks_at_the_beginning_of_the_page_alone():
    page = Page("https://p.example", "t", "The sea is deep here. " + "Tarn was here once.")
    assert await ExtractiveSummariser(max_page_chars=21).summarise(page, "Tarn", 100) == "The sea is deep here."
    assert await ExtractiveSummariser().summarise(page, "Tarn", 100) == "Tarn was here once."
    assert await ExtractiveSummariser(max_sentences=1).summarise(page, "Tarn sea", 100) in page.text
    assert await ExtractiveSummariser().summarise(Page("", "", ""), "Tarn", 100) == ""


def test_a_summary_of_no_sentences_cannot_be_configured():
    with pytest.raises(UserError):
        ExtractiveSummariser(max_sentences=0)
