"""Text that others wrote is data. Nothing in it may look like a tag, a turn marker or numbered evidence of ours.

Every tag of our grammar, every image mark and every marker of ChatML needs an angle bracket, so after `neutralise`
none can be there, whatever the fragments around it are: no list of forbidden words has to be kept complete. The
gateway neutralises what tools return, the prompts what they quote (the question, a message, a policy's own words).
"""

from __future__ import annotations

import re
import unicodedata

_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
# within one line: what may span lines takes quadratic time on a page of empty ones
_FORGED_NUMBER = re.compile(r"^([^\S\n]*)\[([^\S\n]*\d+[^\S\n]*)\]", re.MULTILINE)
_FORGED_CAPTION = re.compile(r"^([^\S\n]*image[^\S\n]+\d+[^\S\n]*):", re.MULTILINE | re.IGNORECASE)
_DROPPED = ("Cc", "Cf", "Cs", "Co")  # controls, invisible format characters, lone surrogates, private use
_JOINERS = "\u200c\u200d"  # invisible, but Persian, Indic scripts and emoji are spelt with them


class _Characters(dict[int, str | None]):
    """What becomes of a character, for str.translate; decided once for each of those that come first."""

    REMEMBERED = 20_000  # a page of every character there is must not fill the memory

    def __missing__(self, code: int) -> str | None:
        c = chr(code)
        kept = c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in _DROPPED
        decided = {"<": "‹", ">": "›"}.get(c, c) if kept else None
        if len(self) < self.REMEMBERED:
            self[code] = decided
        return decided


_CHARACTERS = _Characters()


def neutralise(text: str) -> str:
    """`text` without anything that could be read as ours. Idempotent, and never longer than `text`.

    - angle brackets become single guillemets;
    - control, invisible and direction-changing characters, lone surrogates and private-use characters go;
    - every kind of line break becomes a newline;
    - a line that opens like numbered evidence, `[3]`, opens with `(3)`, and one that opens like a picture's
      caption, `Image 2:`, with `Image 2.`
    """
    text = _LINE_BREAKS.sub("\n", text).translate(_CHARACTERS)
    return _FORGED_CAPTION.sub(r"\1.", _FORGED_NUMBER.sub(r"\1(\2)", text))


def one_line(text: str) -> str:
    """Neutralised, with every run of white space made one space: for titles and addresses."""
    return neutralise(" ".join(neutralise(text).split()))
