"""A turn while it is written: its reasoning, and its answer once there is one, as text that only grows.

    <reason> words </reason>  <answer> words [1] </answer>
             ^^^^^ reasoning           ^^^^^^^^^ content

Always true: what is read of the beginning of a turn is a prefix of what is read of more of it; no part of a tag is in
it, no half citation, no half character. Content is read early only where the turn has been well-formed so far; of a
finished turn it is what `actors.agent.protocol.parse_turn` takes for the answer, citations left in their places.
What was told is never taken back: a turn that turns out otherwise begins anew after an empty line (`Growing`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from actors.agent.protocol import ANSWER, TAG_NAMES

_NAMES = "|".join((*TAG_NAMES, "search"))  # MMSearch-R1's name of an image search among them
_TAG = re.compile(rf"</?(?:{_NAMES})\b")  # what cannot be inside an answer
_NO_TAG = rf"(?:(?!</?(?:{_NAMES})\b).)*"
_OPENING = rf"<{ANSWER}(?:\s+[a-z]+=\"[^\"<>]*\")*\s*>"
_ANSWER = re.compile(rf"{_OPENING}(?P<body>{_NO_TAG})</{ANSWER}>\s*\Z", re.DOTALL)
_REASON = re.compile(r"\s*<reason>")
# possessive, because it is tried again with every token: a turn of nothing but spaces must not take quadratic time
_BEGUN = re.compile(rf"\s*+(?:<reason>(?:(?!</?[a-z_]).)*+</reason>\s*+)?{_OPENING}", re.DOTALL)
_LIKE_A_TAG = re.compile(r"</?[a-z_]")  # what ends a reason
_NAME = re.compile(r"</?[a-z_]*\Z")  # `<answer` at the end may become `<answers`, which is no tag
_HALF = re.compile(r"(?:</?[a-z_]*|\[\d{0,3})\Z")  # what may become a tag or a citation
_CITATION = re.compile(r"\[\d{1,3}\]")
_HALF_CHARACTER = "\ufffd"  # what a decoder writes for bytes that do not make one yet
_ANEW = "\n\n"


def reasoning_of(text: str, *, ended: bool = False) -> str:
    """What is sure of the thought in a turn so far. `ended`: nothing follows."""
    begun = _REASON.match(text)
    return "" if begun is None else _sure(text[begun.end() :], _LIKE_A_TAG, ended)


def content_of(text: str) -> str:
    """What is sure of the answer in a turn so far; "" before it, and while it is nothing but citations."""
    begun = _BEGUN.match(text)
    words = "" if begun is None else _sure(text[begun.end() :], _TAG, ended=False)
    return words if _CITATION.sub("", words).strip() else ""


def answer_of(text: str) -> str:
    """The answer that a finished turn ends with, citations in their places; "" where it ends otherwise."""
    found = _ANSWER.search(text)
    return found["body"].strip() if found else ""


def _sure(words: str, end: re.Pattern[str], ended: bool) -> str:
    """Up to the next tag. Where that has not come, without what may become part of one, or the last space of a turn."""
    tag = end.search(words if ended else _NAME.sub("", words))
    if tag or ended:
        return (words[: tag.start()] if tag else words).strip()
    words = words.lstrip().rstrip(_HALF_CHARACTER)
    while (shorter := _HALF.sub("", words.rstrip())) != words:
        words = shorter
    return words


class Growing:
    """A text that is told in pieces: reasoning, or content. It ends before the first stop string in it.

    Always true: `told` is a prefix of `said`, and never reaches into a stop string, nor into what may become one.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._turn = ""  # what the present turn has said
        self.said = ""
        self.told = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was said."""
        return first_stop(self.said, self._stop) is not None

    def begin(self) -> None:
        """A new turn: what it says comes after an empty line."""
        self._turn = ""

    def reads(self, turn: str, *, ended: bool = False) -> str:
        """What can be told now that the present turn reads so. What contradicts the turn so far waits for its end."""
        if not turn.startswith(self._turn):
            if not ended:
                return ""
            self._turn = ""
        new = turn[len(self._turn) :]
        if new and not self._turn and self.said:
            self.said += _ANEW
        self.said += new
        self._turn = turn
        return self._tell(held=True)

    def settle(self) -> str:
        """What was held because it could have become a stop string; nothing more is said."""
        return self._tell(held=False)

    def _tell(self, *, held: bool) -> str:
        at = first_stop(self.said, self._stop)
        if at is None:
            at = len(self.said) - (longest_beginning(self.said, self._stop) if held else 0)
        news = self.said[len(self.told) : at]
        self.told += news
        return news


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that is the first to be complete in `text`; None where there is none."""
    found = [(at + len(one), at) for one in stop if (at := text.find(one)) >= 0]
    return min(found)[1] if found else None


def longest_beginning(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    most = max((len(one) for one in stop), default=0) - 1
    tails = (n for n in range(min(most, len(text)), 0, -1) if any(one.startswith(text[-n:]) for one in stop))
    return next(tails, 0)
