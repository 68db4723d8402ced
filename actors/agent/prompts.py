"""What the model reads, per preset: the first turn, and what comes back from tools.

The two papers' presets follow their tags, limits and after-search instructions (in our own words); `extended` is the
default of new runs; `compact` is extended with prompts of a few tokens, for models that read only a few hundred;
`compact_whole` is compact without searches for parts of a picture, for an ablation. `extended+crops` and
`compact+crops` are what `agent.return_crops` makes of them; the papers' presets return no crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.agent.protocol import Grammar
from actors.agent.trajectory import Evidence, ImageRef, Outcome, Tool, ToolRequest, ToolResult
from actors.agent.untrusted import neutralise, one_line

GIVE_UP = "unable to answer due to lack of relevant information"


@dataclass(frozen=True)
class Preset:
    """A protocol that a policy is trained under: grammar, limits and prompts."""

    name: str
    grammar: Grammar
    max_turns: int  # turns of the policy, the answer included
    max_tool_calls: int
    max_image_searches: int
    max_text_searches: int
    opening: str  # {images} and {question} are filled in
    after_image: str = ""  # follows the results of an image search; {question}
    after_text: str = ""
    number_evidence: bool = True
    thumbnails: bool = False  # show the pictures of image hits
    image_captions: bool = False  # "Image 1:" before each picture
    return_crops: bool = False  # show what was cut out of a picture, as a picture with a number of its own
    system: str = ""

    def open(self, question: str, n_images: int) -> str:
        """The text of the first user turn, `<image>` where a picture goes."""
        return self.opening.format(images=self.pictures(1, n_images), question=neutralise(question))

    def pictures(self, first: int, n: int) -> str:
        if not self.image_captions:
            return "<image>" * n
        return "".join(f"Image {first + i}: <image>\n" for i in range(n))

    def shown(self, request: ToolRequest, result: ToolResult, room: int | None = None) -> ToolResult:
        """`result` with only those of its pictures that the model sees: `room` at most, first ones first."""
        left = len(result.images) if room is None else room
        cut = self.return_crops and request.image is not None and result.crop_box is not None
        crop = result.crop if cut and left > 0 else None
        left -= crop is not None
        evidence: list[Evidence] = []
        for item in result.evidence:
            seen = self.thumbnails and item.thumbnail is not None and left > 0
            left -= seen
            evidence.append(item if seen else replace(item, thumbnail=None))
        return replace(result, crop=crop, evidence=tuple(evidence))

    def information(self, request: ToolRequest, result: ToolResult, question: str, bank_size: int = 0) -> str:
        """What a tool returned, as the model reads it; `<image>` marks stand for what is `shown` of it, in order.

        `bank_size` images are already in the episode; those of the result are numbered on from there.
        """
        result = self.shown(request, result)
        lines: list[str] = []
        number = bank_size + 1
        if result.crop is not None:
            lines.append(f"{self.pictures(number, 1).rstrip()} {_whence(request, result)}")
            number += 1
        for item in result.evidence:
            line = self._line(item)
            if item.thumbnail is not None:
                line += " " + self.pictures(number, 1).rstrip()
                number += 1
            lines.append(line)
        if not result.evidence:
            lines.append(neutralise(result.message or "nothing was found"))
        body = "\n".join(lines)
        after = self.after_image if request.tool is Tool.IMAGE_SEARCH else self.after_text
        tail = f"\n{after.format(question=neutralise(question))}" if after and result.outcome is Outcome.OK else ""
        return f"<information>{body}</information>{tail}"

    def complaint(self, problem: str) -> str:
        """What the model reads after a turn that could not be carried out."""
        return f"<information>error: {neutralise(problem)}</information>"

    def _line(self, item: Evidence) -> str:
        number = f"[{item.number}] " if self.number_evidence else ""
        title = f"{one_line(item.title)}: " if item.title else ""
        return f"{number}{title}{neutralise(item.text)}".strip()


_MMSEARCH_R1 = Preset(
    name="mmsearch_r1",
    grammar=Grammar(crops=False, boxes=False, image_numbers=False, whole_image_tag="search"),
    max_turns=3,
    max_tool_calls=2,
    max_image_searches=1,
    max_text_searches=2,
    number_evidence=False,
    thumbnails=True,
    opening=(
        "Answer the question about the picture. First think inside <reason>...</reason>: what is seen, and is it known "
        "with confidence? Then do exactly one of three things.\n"
        "1. What is seen is known and so is the answer: <answer>short answer</answer>.\n"
        "2. What is seen is not known: <search><img></search>. The whole picture is looked up on the web.\n"
        "3. What is seen is known but the fact is not: <text_search>one short query</text_search>.\n"
        "Search results come back inside <information>...</information>.\n"
        "Here are the picture and the question:\n{images}{question}"
    ),
    after_image=(
        "The question was: {question}\nThink inside <reason>...</reason> which result shows what is in the picture. "
        "Then either <text_search>one short query</text_search> or <answer>short answer</answer>."
    ),
    after_text=(
        "The question was: {question}\nThink inside <reason>...</reason>, then give <answer>short answer</answer>. "
        "If the results do not suffice, the answer is: Unable to answer due to lack of relevant information."
    ),
)

_DEEPMMSEARCH_R1 = Preset(
    name="deepmmsearch_r1",
    grammar=Grammar(crops=True, boxes=False, image_numbers=False),
    max_turns=10,
    max_tool_calls=10,
    max_image_searches=1,
    max_text_searches=9,
    number_evidence=False,
    opening=(
        "You are an expert at answering questions about pictures, with web search at hand.\n"
        "Look at the picture and think inside <reason>...</reason>. Then do exactly one of the following.\n"
        "(a) <answer>short answer</answer>, when you are sure.\n"
        "(b) Search by picture, once at most: <img_search>what to look for</img_search> cuts that part out and looks "
        "it up (prefer this when one thing matters or the background does not), <img_search><img></img_search> looks "
        "up the whole picture (for scenes, places and context). Close every tag that you open.\n"
        "(c) <text_search>short query</text_search>, as often as needed, when you know what is shown.\n"
        "Results come back inside <information>...</information>.\n{images}Question: {question}"
    ),
    after_image=(
        "Think inside <reason>...</reason>, then either <answer>short answer</answer> or "
        "<text_search>short query</text_search>. The question was: {question}"
    ),
    after_text=(
        "Think inside <reason>...</reason>. Then answer, or search again with a new or more specific "
        "<text_search>query</text_search>, or give up with <answer>Unable to answer due to lack of relevant "
        "information</answer>. The question was: {question}"
    ),
)

_RESULTS = "Results come back numbered inside <information>...</information>."
_CROPS_RETURNED = "What was cut out comes before them, as a further picture."

_EXTENDED = Preset(
    name="extended",
    grammar=Grammar(),
    max_turns=8,
    max_tool_calls=7,
    max_image_searches=3,
    max_text_searches=6,
    thumbnails=True,
    image_captions=True,
    opening=(
        "Answer the question. Searching costs time and money: search only for what you do not know.\n"
        "In every turn, think inside <reason>...</reason>, then do exactly one of the following.\n"
        "- <answer>short answer [n]</answer>, where [n] names the result that supports it, if one does.\n"
        "- <text_search>short query</text_search>\n"
        "- <img_search>what to look for</img_search> finds that thing in the picture, cuts it out and looks it up; "
        "<img_search><img></img_search> looks up the whole picture. With several pictures, say which: "
        '<img_search image="2">...</img_search>. A box in thousandths also works: '
        '<img_search box="x0,y0,x1,y1"></img_search>.\n'
        f"{_RESULTS} If nothing helps, the answer is: Unable to "
        "answer due to lack of relevant information.\n{images}Question: {question}"
    ),
)

_COMPACT = replace(
    _EXTENDED,
    name="compact",
    max_turns=6,
    max_tool_calls=5,
    max_text_searches=4,
    max_image_searches=2,
    thumbnails=False,
    image_captions=False,
    opening="{images}{question}",
)

_COMPACT_WHOLE = replace(_COMPACT, name="compact_whole", grammar=replace(_COMPACT.grammar, crops=False, boxes=False))


def _returning_crops(preset: Preset) -> Preset:
    opening = preset.opening.replace(_RESULTS, f"{_RESULTS} {_CROPS_RETURNED}")
    return replace(preset, name=f"{preset.name}+crops", return_crops=True, opening=opening)


# A crop is a picture with a number of its own: for presets whose policies can name pictures by number, and parts.
RETURNING_CROPS = {preset.name: _returning_crops(preset) for preset in (_EXTENDED, _COMPACT)}

_CONFIGURED = (_MMSEARCH_R1, _DEEPMMSEARCH_R1, _EXTENDED, _COMPACT, _COMPACT_WHOLE)
PRESETS = {preset.name: preset for preset in (*_CONFIGURED, *RETURNING_CROPS.values())}


def in_thousandths(box: tuple[int, int, int, int], image: ImageRef) -> tuple[int, int, int, int]:
    """A box in pixels of an image as a policy writes boxes, rounded outwards."""
    x0, y0, x1, y1 = box
    return (
        x0 * 1000 // image.width,
        y0 * 1000 // image.height,
        -(-x1 * 1000 // image.width),
        -(-y1 * 1000 // image.height),
    )


def _whence(request: ToolRequest, result: ToolResult) -> str:
    """Where the crop of a result was cut out, in words of the grammar."""
    assert request.image is not None
    assert result.crop_box is not None  # else no crop is shown
    box = ",".join(map(str, in_thousandths(result.crop_box, request.image)))
    return f"cut from image {request.image_number}, box {box}"


def gave_up(answer: str) -> bool:
    """Whether an answer is the papers' sentence for giving up."""
    return answer.strip().rstrip(".").lower() == GIVE_UP


def renumber(evidence: Sequence[Evidence], start: int, turn: int) -> tuple[Evidence, ...]:
    """Number evidence through the episode, so that a citation names one thing."""
    return tuple(replace(item, number=start + i, turn=turn) for i, item in enumerate(evidence))
