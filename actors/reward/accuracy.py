"""Whether an answer is right: the papers' normalisation, and three ways to compare.

Normalisation (papers.md 7.6, from SQuAD's evaluation): lower case, no punctuation, no articles, single spaces.
Two cases that the papers' code gets wrong are settled here: an answer that is nothing but punctuation or
articles keeps them (a band may be called "The The"), and an empty answer is never right.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from actors.reward.settings import Matching

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalise(text: str) -> str:
    """`text` as it is compared."""
    lowered = unicodedata.normalize("NFC", text).lower()
    bare = "".join(c for c in lowered if c not in _PUNCTUATION and unicodedata.category(c)[0] != "P")
    squeezed = " ".join(_ARTICLES.sub(" ", bare).split())
    return squeezed or " ".join(lowered.split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 when the answer equals any gold answer, normalised; else 0."""
    said = normalise(answer)
    return float(said != "" and any(said == normalise(gold) for gold in golds))


def contains_match(answer: str, golds: Sequence[str]) -> float:
    """1 when any gold answer occurs in the answer as whole words ("SubEM"); else 0.

    The papers' code compares characters, by which "Art" is in "party".
    """
    said = f" {normalise(answer)} "
    return float(any(gold and f" {gold} " in said for gold in map(normalise, golds)))


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, for the gold answer that it is highest for."""
    return max((_f1(normalise(answer).split(), normalise(gold).split()) for gold in golds), default=0.0)


def _f1(said: list[str], gold: list[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


MATCHERS: dict[Matching, Callable[[str, Sequence[str]], float]] = {
    Matching.EXACT: exact_match,
    Matching.CONTAINS: contains_match,
    Matching.F1: token_f1,
}
