"""The records of an episode, frozen: what was asked, what was sampled, what the tools returned, how it was scored.

Always true of a `Trajectory`:
- it is append-only and token-in/token-out: the ids of an action segment are the ids that the policy sampled;
- token ids are *unexpanded*: one placeholder per image, `PlacedImage.n_tokens` says how long it becomes;
- only action segments carry a loss mask, log-probs and weight versions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
WeightVersion = NewType("WeightVersion", int)


class Label(StrEnum):
    """Whether a question needs a search."""

    REQUIRED = "required"
    FREE = "free"
    UNKNOWN = "unknown"


class SegmentKind(StrEnum):
    """Who wrote a segment: the task, the policy, or a tool."""

    PROMPT = "prompt"
    ACTION = "action"
    OBSERVATION = "observation"


class Tool(StrEnum):
    """The tools that the grammar can call."""

    TEXT_SEARCH = "text_search"
    IMAGE_SEARCH = "image_search"


# What the first step of an episode can be: no search at all, or a search with text, the whole picture, or a part of it.
FIRST_TOOLS = ("none", "text_search", "image_search", "crop")


class Outcome(StrEnum):
    """How a tool call ended. `policy_error`: the model asked for the impossible; `infra_error`: the world failed."""

    OK = "ok"
    EMPTY = "empty"
    REFUSED = "refused"  # a budget or a credit is spent, or a key is wrong: a person has to do something
    POLICY_ERROR = "policy_error"
    INFRA_ERROR = "infra_error"


class Ending(StrEnum):
    """Why an episode stopped."""

    ANSWERED = "answered"
    GAVE_UP = "gave_up"
    OUT_OF_TURNS = "out_of_turns"
    OUT_OF_TOKENS = "out_of_tokens"
    FAILED = "failed"


class Failure(StrEnum):
    """Whose fault a failed episode is. Infra is never scored, data drops the group, policy is scored."""

    NONE = "none"
    POLICY = "policy"
    DATA = "data"
    INFRA = "infra"


@dataclass(frozen=True, order=True)
class ImageRef:
    """An image by content. The bytes live in a blob store under `sha256`; sizes are in pixels."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Question:
    """What is asked. `designed_label` is what its maker meant, `measured_label` what the base model showed."""

    id: str
    text: str
    images: tuple[ImageRef, ...] = ()
    answers: tuple[str, ...] = ()  # any of them is right
    designed_label: Label = Label.UNKNOWN
    measured_label: Label = Label.UNKNOWN
    category: str = ""  # topic, as in FVQA
    kind: str = ""  # the shortest right path of tools, as its maker designed it; "" when unknown
    source: str = ""
    first_tools: tuple[str, ...] = ()  # of FIRST_TOOLS: each is a right first step; () when unknown
    tags: tuple[str, ...] = ()  # free words to break results down by


@dataclass(frozen=True)
class VersionSpan:
    """Tokens `[start, end)` of one action were sampled under weights `version`."""

    version: WeightVersion
    start: int
    end: int


@dataclass(frozen=True)
class PlacedImage:
    """An image inside a segment: its placeholder stands at `offset` and expands to `n_tokens` tokens."""

    offset: int
    ref: ImageRef
    n_tokens: int


def _empty_floats() -> FloatArray:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of tokens by one author.

    token_ids int32[n]; logprobs float32[n] for actions, empty otherwise; spans cover an action's tokens without gaps.
    """

    kind: SegmentKind
    token_ids: IntArray
    logprobs: FloatArray = field(default_factory=_empty_floats)
    spans: tuple[VersionSpan, ...] = ()
    images: tuple[PlacedImage, ...] = ()
    text: str = ""  # decoded, for people; never re-tokenised

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if self.kind is SegmentKind.ACTION:
            if len(self.logprobs) != n:
                raise ValueError(f"an action of {n} tokens carries {len(self.logprobs)} log-probs")
            ends = [0, *(span.end for span in self.spans)]
            if [span.start for span in self.spans] != ends[:-1] or ends != sorted(ends) or ends[-1] != n:
                raise ValueError(f"version spans {self.spans} do not cover the {n} tokens of an action")
        elif len(self.logprobs) or self.spans:
            raise ValueError(f"a {self.kind} segment was not sampled: it has no log-probs and no versions")
        if any(not 0 <= image.offset < n for image in self.images):
            raise ValueError("an image lies outside its segment")

    @property
    def trained(self) -> bool:
        """Whether the tokens of this segment enter the loss."""
        return self.kind is SegmentKind.ACTION

    @property
    def expanded_length(self) -> int:
        """Tokens after every image placeholder has grown to its full length."""
        return len(self.token_ids) + sum(image.n_tokens - 1 for image in self.images)


@dataclass(frozen=True)
class Evidence:
    """A numbered piece of retrieved text, with enough provenance to audit it."""

    number: int
    title: str
    text: str
    url: str = ""
    provider: str = ""
    retrieved_at: float = 0.0  # unix seconds
    content_sha256: str = ""
    crop_box: tuple[int, int, int, int] | None = None  # pixels x0, y0, x1, y1 of the searched image
    turn: int = 0
    thumbnail: ImageRef | None = None
    image_number: int = 0  # the image of the episode that was searched; 0 for a text search


@dataclass(frozen=True)
class ToolRequest:
    """A call as the policy wrote it. Image search looks at image `image` (1-based): whole, by expression, or by box."""

    tool: Tool
    query: str = ""  # text query, or referring expression; "" for a whole image
    image: ImageRef | None = None
    image_number: int = 1
    box: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 in thousandths of width and height
    question: str = ""  # the user's question, for summarisers
    return_crop: bool = False  # what is cut out of the image is wanted as an image


@dataclass(frozen=True)
class ToolResult:
    """What a tool returned. It never raises for what the world did: `outcome` says it, `message` explains it."""

    outcome: Outcome
    evidence: tuple[Evidence, ...] = ()
    message: str = ""
    provider: str = ""
    latency_s: float = 0.0
    cost_usd: float = 0.0
    cached: bool = False
    crop_box: tuple[int, int, int, int] | None = None
    crop: ImageRef | None = None  # what lies in `crop_box`, where it was wanted; None for a whole image

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """What a model can be shown of it, in the order in which it is shown: the crop, then thumbnails."""
        pictures = (self.crop, *(item.thumbnail for item in self.evidence))
        return tuple(picture for picture in pictures if picture is not None)


@dataclass(frozen=True)
class ToolCall:
    """A request and its result, as they stand in a trajectory."""

    request: ToolRequest
    result: ToolResult
    turn: int
    started_at: float  # seconds on the episode's clock

    @property
    def executed(self) -> bool:
        """Whether a provider was really asked (a policy error is caught before)."""
        return self.result.outcome is not Outcome.POLICY_ERROR


@dataclass(frozen=True)
class RewardParts:
    """A reward and what it was made of."""

    total: float
    accuracy: float
    format: float
    penalty: float  # multiplies accuracy; 1 without searches
    searches: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode, from question to ending."""

    question_id: str
    sample_index: int
    segments: tuple[Segment, ...]
    tool_calls: tuple[ToolCall, ...]
    ending: Ending
    failure: Failure = Failure.NONE
    answer: str = ""
    citations: tuple[int, ...] = ()
    format_ok: bool = False
    problem: str = ""  # the first thing that went wrong, in words
    reward: RewardParts | None = None
    seconds: float = 0.0

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return tuple(e for call in self.tool_calls for e in call.result.evidence)

    @property
    def searches(self) -> int:
        """Searches that reached a provider."""
        return sum(call.executed for call in self.tool_calls)

    @property
    def refused(self) -> str:
        """What a tool said that no retry mends (a budget, a credit, a key); "" when none did."""
        return next((c.result.message for c in self.tool_calls if c.result.outcome is Outcome.REFUSED), "")

    @property
    def sampled_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments if s.trained)

    @property
    def expanded_length(self) -> int:
        return sum(s.expanded_length for s in self.segments)

    @property
    def versions(self) -> tuple[int, ...]:
        """The weight versions that sampled this episode, ascending."""
        return tuple(sorted({int(span.version) for s in self.segments for span in s.spans}))

    @property
    def tokens_by_version(self) -> dict[int, int]:
        """Sampled tokens by the weight version that sampled them."""
        tokens: dict[int, int] = {}
        for span in (span for s in self.segments for span in s.spans):
            tokens[int(span.version)] = tokens.get(int(span.version), 0) + span.end - span.start
        return tokens

    def scored(self, reward: RewardParts) -> Trajectory:
        return replace(self, reward=reward)


@dataclass(frozen=True, eq=False)
class Group:
    """The episodes of one question; advantages are relative to the group."""

    question: Question
    trajectories: tuple[Trajectory, ...]
    admitted_at_version: WeightVersion


@dataclass(frozen=True)
class Summary:
    """What the controller keeps in memory of a finished episode; the payload stays in the object store."""

    question_id: str
    sample_index: int
    reward: float
    accuracy: float
    ending: Ending
    failure: Failure
    searches: int
    sampled_tokens: int
    expanded_length: int
    oldest_version: int
    newest_version: int
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trajectory: Trajectory) -> Summary:
        reward = trajectory.reward or RewardParts(0.0, 0.0, 0.0, 1.0, trajectory.searches)
        versions = trajectory.versions or (-1,)
        return cls(
            question_id=trajectory.question_id,
            sample_index=trajectory.sample_index,
            reward=reward.total,
            accuracy=reward.accuracy,
            ending=trajectory.ending,
            failure=trajectory.failure,
            searches=trajectory.searches,
            sampled_tokens=trajectory.sampled_tokens,
            expanded_length=trajectory.expanded_length,
            oldest_version=versions[0],
            newest_version=versions[-1],
            seconds=trajectory.seconds,
            extra={
                "tokens_by_version": trajectory.tokens_by_version,
                "tool_seconds": sum(call.result.latency_s for call in trajectory.tool_calls),
                "cost_usd": sum(call.result.cost_usd for call in trajectory.tool_calls),
                "answer": trajectory.answer,
                "format": reward.format,
                "refused": trajectory.refused,
            },
        )
