"""The one grammar between a policy and its tools: tags to actions and back.

    turn   := <reason> words </reason> action
    action := <text_search> query </text_search>
            | <img_search> <img> </img_search>                      the whole image
            | <img_search> referring expression </img_search>       a crop, by grounding
            | <img_search image="2"> ...                            another image of the episode (extended)
            | <img_search box="x0,y0,x1,y1"></img_search>           a box in thousandths (extended)
            | <answer> words [n] </answer>                          evidence cited by number (extended)

The same definitions make prompts, parse turns and decide the format reward. Parsing is lenient about everything before
the action, so that a clumsy turn can still be carried out, and strict about `well_formed`, which the format reward
reads. What others wrote never takes part in it: see `untrusted.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REASON, TEXT_SEARCH, IMAGE_SEARCH, ANSWER, INFORMATION = (
    "reason",
    "text_search",
    "img_search",
    "answer",
    "information",
)
WHOLE_IMAGE = "<img>"
TAG_NAMES = (REASON, TEXT_SEARCH, IMAGE_SEARCH, ANSWER, INFORMATION)
TAGS = (*(f"<{slash}{name}>" for name in TAG_NAMES for slash in ("", "/")), WHOLE_IMAGE)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class TextSearch:
    query: str


@dataclass(frozen=True)
class ImageSearch:
    """Whole image when neither `expression` nor `box` is given."""

    expression: str = ""
    box: Box | None = None  # thousandths of width and height
    image_number: int = 1


@dataclass(frozen=True)
class Answer:
    """`text` is free of citations, which stand in `citations`."""

    text: str
    citations: tuple[int, ...] = ()


Action = TextSearch | ImageSearch | Answer


@dataclass(frozen=True)
class Turn:
    """A parsed turn. `action` is None when none can be carried out.

    `problem` says why it is None, or why the turn is not well-formed.
    """

    reason: str
    action: Action | None
    well_formed: bool
    problem: str = ""


@dataclass(frozen=True)
class Grammar:
    """What of the grammar a preset allows."""

    crops: bool = True  # referring expressions
    boxes: bool = True
    image_numbers: bool = True
    whole_image_tag: str = IMAGE_SEARCH  # MMSearch-R1 writes <search><img></search>


# tried on the end of a turn; the body cannot contain a further opening of the same tag
_ACTION = re.compile(
    r"<(?P<tag>text_search|img_search|search|answer)(?P<attributes>(?:\s+[a-z]+=\"[^\"<>]*\")*)\s*>"
    r"(?P<body>(?:(?!</?(?:reason|text_search|img_search|search|answer|information)\b).)*)"
    r"</(?P=tag)>\s*\Z",
    re.DOTALL,
)
_REASON = re.compile(r"\A\s*<reason>(?P<reason>(?:(?!</?[a-z_]+).)*)</reason>\s*\Z", re.DOTALL)
_ATTRIBUTE = re.compile(r"([a-z]+)=\"([^\"]*)\"")
_CITATION = re.compile(r"\s*\[(\d{1,3})\]")


def parse_turn(text: str, grammar: Grammar) -> Turn:
    """Read one turn of the policy, end-of-turn token removed. Never raises."""
    found = _ACTION.search(text)
    before = text[: found.start()] if found else text
    reason = _REASON.match(before)
    words = reason["reason"].strip() if reason else ""
    if found is None:
        return Turn(words, None, False, "no action at the end of the turn")
    action, problem = _action(found, grammar)
    if not problem and reason is None:
        problem = "the action must follow one <reason>...</reason> and nothing else"
    return Turn(words, action, not problem, problem)


def _action(found: re.Match[str], grammar: Grammar) -> tuple[Action | None, str]:
    """The action and what is wrong with it; an action with a problem can be carried out but is not well-formed."""
    tag, body = found["tag"], " ".join(found["body"].split())
    pairs = _ATTRIBUTE.findall(found["attributes"] or "")
    attributes = dict(pairs)
    repeated = "an attribute is given twice" if len(attributes) != len(pairs) else ""
    if tag not in (ANSWER, TEXT_SEARCH):
        return (None, repeated) if repeated else _image_action(tag, body, attributes, grammar)
    problem = f"<{tag}> has no attributes" if pairs else ""
    if tag == TEXT_SEARCH:
        if WHOLE_IMAGE in body:
            return None, f"a text query cannot hold {WHOLE_IMAGE}"
        return (TextSearch(body), problem) if body else (None, "the text query is empty")
    citations = tuple(dict.fromkeys(int(n) for n in _CITATION.findall(body)))
    text = " ".join(_CITATION.sub(" ", body).split())
    return (Answer(text, citations), problem) if text else (None, "the answer is empty")


def _image_action(tag: str, body: str, attributes: dict[str, str], grammar: Grammar) -> tuple[Action | None, str]:
    if tag != grammar.whole_image_tag:
        return None, f"unknown tool <{tag}>"
    number, problem = _image_number(attributes.pop("image", None), grammar)
    box, box_problem = _box(attributes.pop("box", None), grammar)
    problem = problem or box_problem or (f"unknown attribute {min(attributes)}" if attributes else "")
    if problem:
        return None, problem
    if box is not None or body == WHOLE_IMAGE:
        return ImageSearch("", box, number), ""
    if not body:
        return None, "the image search says neither <img> nor what to look for"
    if "<" in body:
        return None, "malformed tag inside the image search"
    if not grammar.crops:
        return None, "only the whole image can be searched"
    return ImageSearch(body, None, number), ""


def _image_number(value: str | None, grammar: Grammar) -> tuple[int, str]:
    if value is None:
        return 1, ""
    if not grammar.image_numbers or not value.isascii() or not value.isdigit() or len(value) > 3 or int(value) < 1:
        return 1, f"image number {value!r} cannot be used"
    return int(value), ""


def _box(value: str | None, grammar: Grammar) -> tuple[Box | None, str]:
    if value is None:
        return None, ""
    parts = value.split(",")
    if not grammar.boxes or len(parts) != 4 or not all(re.fullmatch(r"\s*\d{1,4}\s*", part) for part in parts):
        return None, f"box {value!r} cannot be used"
    x0, y0, x1, y1 = (int(part) for part in parts)
    if not (0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000):
        return None, f"box {value!r} is empty or outside 0..1000"
    return (x0, y0, x1, y1), ""


def render_turn(reason: str, action: Action, grammar: Grammar) -> str:
    """Write a turn; `parse_turn` reads it back (teachers and tests use it)."""
    return f"<reason>{reason}</reason>{render_action(action, grammar)}"


def render_action(action: Action, grammar: Grammar) -> str:
    if isinstance(action, TextSearch):
        return f"<text_search>{action.query}</text_search>"
    if isinstance(action, Answer):
        cited = "".join(f" [{n}]" for n in action.citations)
        return f"<answer>{action.text}{cited}</answer>"
    tag = grammar.whole_image_tag
    attributes = f' image="{action.image_number}"' if action.image_number != 1 else ""
    if action.box is not None:
        attributes += f' box="{",".join(map(str, action.box))}"'
    body = "" if action.box is not None else action.expression or WHOLE_IMAGE
    return f"<{tag}{attributes}>{body}</{tag}>"
