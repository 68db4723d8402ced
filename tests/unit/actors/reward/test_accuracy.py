import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.reward.accuracy import contains_match, exact_match, normalise, token_f1


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("The Titanic.", "titanic"),
        ("  Ilse   TARN!", "Ilse Tarn"),
        ("an apple a day", "apple day"),
        ("“Café”", "café"),
        ("cafe\u0301", "caf\u00e9"),
        ("U.S.", "us"),
        ("The The", "the the"),
        ("A", "a"),
        ("?", "?"),
    ],
)
def test_answers_that_mean_the_same_match(said, gold):
    assert exact_match(said, [gold]) == 1.0


@pytest.mark.parametrize(
    ("said", "golds"),
    [("", ["", "the"]), (" ", [" "]), ("the", [""]), ("1931", ["1932"]), ("x", []), ("Theodor", ["odor"])],
)
def test_answers_that_do_not_match(said, golds):
    assert exact_match(said, golds) == 0.0


def test_any_gold_answer_will_do():
    assert exact_match("I. Tarn", ["Ilse Tarn", "i tarn"]) == 1.0


def test_a_gold_answer_is_contained_as_words_only():
    assert contains_match("It was Ilse Tarn, in 1931.", ["Ilse Tarn"]) == 1.0
    assert contains_match("a party", ["art"]) == 0.0
    assert contains_match("anything", ["", " "]) == 0.0
    assert contains_match("", ["x"]) == 0.0


def test_token_f1_by_hand():
    # said: ilse tarn 1931 (3), gold: ilse tarn (2), common 2 -> 2 * 2 / 5
    assert token_f1("Ilse Tarn 1931", ["nobody", "Ilse Tarn"]) == pytest.approx(0.8)
    assert token_f1("x x", ["x"]) == pytest.approx(2 / 3)
    assert token_f1("", ["x"]) == 0.0
    assert token_f1("x", []) == 0.0


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_more_than_once_unless_only_articles_are_left(text):
    once = normalise(text)
    assert exact_match(text, [text]) == float(once != "")
    assert "  " not in once
    assert once == once.strip()


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=4))
def test_all_measures_lie_between_0_and_1_and_an_exact_match_is_also_contained(said, golds):
    exact, contained, f1 = exact_match(said, golds), contains_match(said, golds), token_f1(said, golds)
    assert 0.0 <= f1 <= 1.0
    if exact:
        assert contained == 1.0
        assert f1 == pytest.approx(1.0)
