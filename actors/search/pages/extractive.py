"""Summaries without a model: the sentences of a page that bear most on the question, in the page's order.

Always true: the same page and question give the same summary; every sentence of it stands in the page, but for marks
of Markdown; time grows with the page's length alone, whatever is in it: all patterns here are linear.

Sentences are ranked by BM25 over the page itself: its sentences are the documents, so a word that is everywhere on
the page counts little. A sentence inherits a part of what the one before it is worth, because "He was born in 1931."
answers a question about whoever the sentence before has named.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from actors.search.evidence import bounded
from actors.search.seams import Page
from cluster.errors import UserError

LONGEST = 400  # characters of one sentence; longer runs without a stop are cut between words
_K1, _B = 1.2, 0.5  # BM25: saturation as usual, half the usual weight of length, sentences differ less than pages
_INHERITED = 0.3  # of the preceding sentence's own score
_FRAGMENT_TERMS, _FRAGMENT_WORTH = 4, 0.5  # menus and headings repeat the question's words and say nothing of them

_IMAGE = re.compile(r"!\[[^\[\]\n]{0,300}\]\([^()\s]{0,2000}\)")  # of Markdown, which page readers write
_LINK = re.compile(r"\[([^\[\]\n]{0,300})\]\([^()\s]{0,2000}\)")
_BOLD = re.compile(r"\*{2,3}|_{2,3}")
_DECORATION = re.compile(r"(?:[>#*|+=_-]+(?:\s|$)|\s)+")  # at the beginning of a line: headings, items, rules
_WRAPPED = re.compile(r"(?<=[\w,;])[ \t]?\n(?=[^\W\d_])")  # a line that may go on in the next one
# A run of stops is looked at once, from its beginning: hence the lookbehind and the possessive quantifiers.
_STOP = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s)|[。！？｡]++[」』”’）]*+")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]{1,12}$")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TERM = re.compile(rf"[{_CJK}]++|[^\W_{_CJK}]++")
_SHORTENED = """
mr mrs ms dr prof rev hon gen col capt lt sgt sen rep gov st mt ft no nos vol fig figs pp ed eds art sec ch al vs inc
ltd co corp dept univ approx ca cf eg ie viz jr sr est jan feb mar apr jun jul aug sep sept oct nov dec bzw
"""
_FUNCTION_WORDS = """
a an and are as at be by did do does for from had has have how in is it its of on or that the their this to was were
what when where which who whom whose why will with
"""
_ABBREVIATIONS, _COMMON = frozenset(_SHORTENED.split()), frozenset(_FUNCTION_WORDS.split())
_SUFFIXES = ("ings", "ing", "ers", "er", "ed", "es", "s")


class ExtractiveSummariser:
    """The default summariser. Needs no model, no key and no network."""

    def __init__(self, max_sentences: int = 5, max_page_chars: int = 30_000) -> None:
        """`max_sentences` of a summary (papers.md 2.1); `max_page_chars` of a page are looked at.

        Raises UserError for less than 1 of either.
        """
        if max_sentences < 1 or max_page_chars < 1:
            raise UserError("The extractive summariser's max_sentences and max_page_chars must be at least 1.")
        self._max_sentences, self._max_page_chars = max_sentences, max_page_chars

    async def summarise(self, page: Page, question: str, max_chars: int) -> str:
        """At most `max_sentences` sentences of the page in at most `max_chars` characters; "" of an empty page."""
        text = page.text[: self._max_page_chars]
        return await asyncio.to_thread(summary, text, question, self._max_sentences, max_chars)


def summary(text: str, question: str, max_sentences: int, max_chars: int) -> str:
    """The sentences of `text` that bear most on `question`; its first ones where none does."""
    candidates = list(dict.fromkeys(sentences(text)))  # what a page repeats is worth saying once
    worth = _worth(candidates, question)
    chosen: list[int] = []
    length = 0
    for index in sorted(range(len(candidates)), key=lambda i: (-worth[i], i)):
        more = len(candidates[index]) + bool(chosen)  # the space between
        if chosen and worth[index] <= 0:
            break  # silence says more than sentences about something else
        if length + more <= max_chars:
            chosen.append(index)
            length += more
        elif not chosen:
            return bounded(candidates[index], max_chars)
        if len(chosen) == max_sentences:
            break
    return " ".join(candidates[index] for index in sorted(chosen))


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page, each on one line and at most LONGEST characters long.

    The end of a line ends a sentence, as headings and items of lists have no stop, unless the next line goes on
    with a small letter. A full stop does not end one after an abbreviation or an initial, nor before a small letter.
    """
    text = _BOLD.sub("", _LINK.sub(r"\1", _IMAGE.sub(" ", text)))
    text = _WRAPPED.sub(lambda wrap: " " if text[wrap.end()].islower() else "\n", text)
    for line in text.splitlines():
        decoration = _DECORATION.match(line)
        line = " ".join(line[decoration.end() if decoration else 0 :].split())
        begin = 0
        for stop in _STOP.finditer(line):
            if _ends(line, begin, stop):
                yield from _pieces(line[begin : stop.end()].strip())
                begin = stop.end()
        yield from _pieces(line[begin:].strip())


def _ends(line: str, begin: int, stop: re.Match[str]) -> bool:
    """Whether this stop ends the sentence that begins at `begin`."""
    if stop.group() != ".":
        return True
    if begin == 0 and line[: stop.start()].isdigit():
        return False  # the number of a list's item
    following = line[stop.end() + 1 : stop.end() + 2]
    if following.islower():
        return False
    before = _LAST_WORD.search(line, max(0, stop.start() - 12), stop.start())
    word = before.group().lower() if before else ""
    return not (word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or re.fullmatch(r"(?:\w\.)+\w", word))


def _pieces(sentence: str) -> Iterator[str]:
    """`sentence` cut between words into pieces of at most LONGEST characters; nothing of what has no word in it."""
    while len(sentence) > LONGEST:
        cut = sentence.rfind(" ", LONGEST // 2, LONGEST)
        cut = LONGEST if cut < 0 else cut
        yield from _pieces(sentence[:cut])
        sentence = sentence[cut:].strip()
    if _TERM.search(sentence):
        yield sentence


def _terms(text: str) -> Iterator[str]:
    """Words in their plainest form; of scripts without spaces, pairs of characters."""
    for run in _TERM.findall(text.casefold()):
        if "\u3040" <= run[0] <= "\u9fff" or "\uac00" <= run[0] <= "\ud7af":
            yield from (run[i : i + 2] for i in range(max(1, len(run) - 1)))
        else:
            yield _stem(run)


def _stem(word: str) -> str:
    """A rough one of English: founder, founded and founding are one. Four characters always stay."""
    suffix = next((s for s in _SUFFIXES if word.endswith(s) and len(word) - len(s) >= 4), "")
    return word.removesuffix(suffix)


def _worth(candidates: Sequence[str], question: str) -> list[float]:
    """A score for each sentence, in one pass over the words.

    It is 0 for one that shares nothing with the question and for one that says nothing else than the question.
    """
    wanted = set(_terms(question))
    wanted = wanted - _COMMON or wanted
    counts: list[Counter[str]] = []
    lengths: list[int] = []
    for sentence in candidates:
        terms = list(_terms(sentence))
        lengths.append(len(terms))
        says_more = any(term not in wanted and term not in _COMMON for term in terms)
        counts.append(Counter(term for term in terms if says_more and term in wanted))
    n = len(candidates)
    holding = Counter(term for count in counts for term in count)
    idf = {term: math.log(1 + (n - df + 0.5) / (df + 0.5)) for term, df in holding.items()}
    mean = sum(lengths) / n if n else 1.0

    own: list[float] = []
    for count, length in zip(counts, lengths, strict=True):
        norm = _K1 * (1 - _B + _B * length / mean)
        score = sum(idf[term] * tf * (_K1 + 1) / (tf + norm) for term, tf in sorted(count.items()))
        own.append(score * (_FRAGMENT_WORTH if length < _FRAGMENT_TERMS else 1.0))
    inherited = [
        0.0 if length < _FRAGMENT_TERMS else _INHERITED * before
        for before, length in zip([0.0, *own], lengths, strict=False)
    ]
    if not any(own):  # of a page that shares no word with the question, its first real sentences
        return [0.0 if length < _FRAGMENT_TERMS else 1.0 for length in lengths]
    return [a + b for a, b in zip(own, inherited, strict=True)]
