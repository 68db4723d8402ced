"""Retrieved text is data. Nothing in it may look like a tag, a turn marker or numbered evidence of ours.

Every tag of our grammar and every marker of ChatML needs an angle bracket, so after `sanitise` none can be
there, whatever the fragments around it are: no list of forbidden words has to be kept complete.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_BRACKETS = str.maketrans({"<": "‹", ">": "›"})
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
_FORGED_NUMBER = re.compile(r"^(\s*)\[(\s*\d+\s*)\]", re.MULTILINE)
_FORGED_CAPTION = re.compile(r"^(\s*image\s+\d+\s*):", re.MULTILINE | re.IGNORECASE)
_DROPPED = ("Cc", "Cf", "Cs", "Co")  # controls, invisible format characters, lone surrogates, private use
_JOINERS = "\u200c\u200d"  # invisible, but Persian, Indic scripts and emoji are spelt with them
_ELLIPSIS = "…"


def sanitise(text: str) -> str:
    """`text` without anything that could be read as ours. Idempotent, and never longer than `text`.

    - angle brackets become single guillemets;
    - control, invisible and direction-changing characters, lone surrogates and private-use characters go;
    - every kind of line break becomes a newline;
    - a line that opens like numbered evidence, `[3]`, opens with `(3)`, and one that opens like a picture's
      caption, `Image 2:`, with `Image 2.`
    """
    text = _LINE_BREAKS.sub("\n", text).translate(_BRACKETS)
    text = "".join(c for c in text if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in _DROPPED)
    return _FORGED_CAPTION.sub(r"\1.", _FORGED_NUMBER.sub(r"\1(\2)", text))


def one_line(text: str) -> str:
    """Sanitised, with every run of white space made one space: for titles and addresses."""
    return sanitise(" ".join(sanitise(text).split()))


def bounded(text: str, max_chars: int) -> str:
    """At most `max_chars` characters, cut between words where there is one to cut at."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    if max_chars < 2:
        return text[:max_chars]
    head = text[: max_chars - 1]
    cut = re.search(r"\s\S*$", head)
    if not text[max_chars - 1].isspace() and cut and cut.start() > max_chars // 2:
        head = head[: cut.start()]
    return head.rstrip() + _ELLIPSIS


def content_sha256(text: str) -> str:
    """Of what was retrieved, before anything was done to it."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
