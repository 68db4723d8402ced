"""Lessons in reading: what is quoted stands in the results under its number, and nothing else does."""

import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from workflows.embedded.lexicon import Names
from workflows.embedded.reading import ANOTHER, Reader, quoted

QUOTE = re.compile(r"^(the .+ is .+) \[(\d+)\]\.")
SEEDS = st.integers(0, 10_000)


def reader(seed, taken=()):
    rng = Random(seed)
    return Reader(rng, Names(rng, taken))


def results(text):
    """Line by number."""
    return {int(number): line for number, line in re.findall(r"\[(\d+)\] (.+?\.)(?:\n|</information>)", text)}


@given(SEEDS)
def test_the_quoted_line_answers_the_question_and_is_the_only_one_that_does(seed):
    [exchange] = reader(seed).find()
    shown = results(exchange.text)
    assert len(shown) == 2
    question = exchange.text.splitlines()[0]
    fact, about = re.search(r"the (?:current )?(\w+) of (?:the \w+ )?(\w+)[?.]$", question).groups()
    answering = [n for n, line in shown.items() if re.match(rf"{about}: the (current )?{fact} (of the \w+ )?is ", line)]
    if exchange.reply == ANOTHER:
        assert not answering
    else:
        words, number = QUOTE.match(exchange.reply).groups()
        assert answering == [int(number)]
        assert shown[int(number)].endswith(f": {words}.")


@given(SEEDS)
def test_a_lesson_of_several_searches_asks_about_what_it_has_just_read_and_ends_with_a_quote(seed):
    exchanges = reader(seed).follow("the red star")
    shown, numbers = {}, []
    for exchange in exchanges:
        found = results(exchange.text)
        numbers += found
        shown |= found
    assert numbers == list(range(1, 2 * len(exchanges) + 1))  # numbered through the episode
    last = exchanges[-1].reply
    assert last[QUOTE.match(last).end() :] == " done."
    name = shown[1].partition(":")[0]
    assert re.match(rf"it is {name} \[1\]\. (\w+)\? {name} \1$", exchanges[0].reply)
    for exchange in exchanges[1:]:
        if exchange.reply.startswith(ANOTHER):
            assert re.match(rf"another one\. {name} (current chief|\w+ \w+)$", exchange.reply)
            continue
        words, number = QUOTE.match(exchange.reply).groups()
        assert shown[int(number)].endswith(f": {words}.")
        query = exchange.reply.partition("? ")[2]
        assert not query or words.endswith(f" is {query.split()[0]}")


def test_a_quote_ends_with_its_number():
    assert quoted("the river is vel.", 3) == "the river is vel [3]."
    assert quoted("a fine place", 12) == "a fine place [12]."
