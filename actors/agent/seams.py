"""The Protocols at which an episode meets the rest of the system.

Times are seconds, deadlines are absolute times of a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.agent.trajectory import (
    Failure,
    FloatArray,
    ImageRef,
    IntArray,
    Question,
    Segment,
    ToolRequest,
    ToolResult,
    VersionSpan,
)

Clock = Callable[[], float]  # monotonic seconds


@dataclass(frozen=True)
class Sampling:
    """How a policy samples one turn."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_tokens: int = 512  # of this turn
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Generation:
    """One sampled turn: token_ids int32[n] (end-of-turn token included when it was sampled), logprobs float32[n]."""

    token_ids: IntArray
    logprobs: FloatArray
    spans: tuple[VersionSpan, ...]
    stop: str  # end_of_turn | length | aborted


class Generator(Protocol):
    """A policy that continues token sequences: local engine, remote sampler, or a scripted teacher."""

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        """Raise `GenerationFailed` when the engine (not the policy) failed."""
        ...


class Renderer(Protocol):
    """Text to tokens and back for one model; the only owner of chat template and placeholders."""

    end_of_turn: int

    def open(self, text: str, images: Sequence[ImageRef]) -> Segment:
        """The first user turn, generation prompt included. Images go where `text` has `<image>` marks, in order."""
        ...

    def observe(self, text: str, images: Sequence[ImageRef] = ()) -> Segment:
        """A further user turn alone, generation prompt included; history is untouched."""
        ...

    def decode(self, token_ids: IntArray) -> str:
        """The text of a sampled turn, without the end-of-turn token."""
        ...

    def forbidden(self, token_ids: IntArray) -> bool:
        """Whether a turn contains tokens that only the task may write (vision placeholders, turn markers)."""
        ...


class Toolbox(Protocol):
    """The outside world as the episode sees it."""

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """Never raises for what the world did: the outcome says it."""
        ...


class ImageStore(Protocol):
    """Image bytes by content."""

    def put(self, data: bytes) -> ImageRef:
        """Raise `ImageRefused` for what is not an image, is too large, or is a decompression bomb."""
        ...

    def get(self, ref: ImageRef) -> bytes: ...

    def has(self, ref: ImageRef) -> bool:
        """Whether `get` would find it, without its bytes."""
        ...


class Observer(Protocol):
    """Sees what happens in an episode as it happens; cannot change it."""

    def __call__(self, event: str, detail: dict[str, Any]) -> None: ...


class GenerationFailed(RuntimeError):
    """The engine, not the policy, failed to continue a sequence: an infrastructure failure, to be retried elsewhere."""


class ScoringFailed(RuntimeError):
    """There is no reward. `failure`: INFRA (mask the episode) or DATA (drop the group)."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message

    def __reduce__(self):
        return (ScoringFailed, (self.failure, self.message))


class ImageRefused(ValueError):
    """Bytes that are not an acceptable image. A data failure when they come with a question."""


class ImageMissing(LookupError):
    """A reference whose bytes no store holds. A data failure."""


__all__ = [
    "Clock",
    "Generation",
    "GenerationFailed",
    "Generator",
    "ImageMissing",
    "ImageRefused",
    "ImageStore",
    "Observer",
    "Question",
    "Renderer",
    "Sampling",
    "ScoringFailed",
    "Toolbox",
]
