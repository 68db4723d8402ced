"""An answer as `chat.completion.chunk`s while it is made. Pure, on an injected clock.

    role -> (search_step | reasoning_content | content)* -> annotations -> finish_reason -> [usage] -> [DONE]

Steps travel in ordinary chunks with the extra field `search_step`, because OpenAI's client makes a chunk of every event
and raises on a top-level `error`. Nothing else is ever sent: no `id:`, no `event:`, no event without data, which that
client does not bear. A chunk is of one choice, as OpenAI's are.

Always true: of events that are sent for the sake of text alone there are at most `events_per_second`; no step waits for
text, and no text overtakes a step: what is held of a choice goes in the delta of its next step, or of its end; a stream
without a `finish_reason` is one that broke off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workflows.serve.answers import Answered, usage
from workflows.serve.errors import ApiError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": the agent is at work\n\n"
# Line breaks of Unicode that JSON leaves as they are and some clients split a stream at.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def encoded(content: dict[str, Any]) -> bytes:
    """JSON on one line, whatever is in it; a lone surrogate, which no UTF-8 is, becomes `?`."""
    line = json.dumps(content, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)
    return line.encode("utf-8", "replace")


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(content) + b"\n\n"


@dataclass
class ChunkWriter:
    """The chunks of one stream with any number of choices."""

    identity: str
    created: int
    model: str
    clock: Callable[[], float]
    events_per_second: float = 20.0
    include_usage: bool = False
    _held: dict[int, dict[str, str]] = field(default_factory=dict)  # by choice, longest waiting first: text by field
    _next_at: float = float("-inf")
    _done: dict[int, Answered] = field(default_factory=dict)

    def begin(self, choices: int) -> bytes:
        """What tells the client at once that it is heard."""
        return b"".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(choices))

    def text(self, index: int, name: str, words: str) -> bytes:
        """`name`: content | reasoning_content. Empty while more is waited for; `wait_s` says how long."""
        held = self._held.setdefault(index, {})
        held[name] = held.get(name, "") + words
        return self.due()

    @property
    def wait_s(self) -> float | None:
        """Seconds until held text is due; None when none is held."""
        return max(0.0, self._next_at - self.clock()) if self._held else None

    def due(self) -> bytes:
        """Held text, if it is time: that of the choice that has waited longest."""
        if not self._held or (now := self.clock()) < self._next_at:
            return b""
        self._next_at = now + 1 / self.events_per_second
        index = next(iter(self._held))
        return self._chunk(index, self._take(index))

    def step(self, index: int, step: dict[str, Any]) -> bytes:
        """A step as it happens."""
        return self._chunk(index, self._take(index), search_step=step)

    def finish(self, index: int, choice: Answered) -> bytes:
        """The end of one choice."""
        self._done[index] = choice
        cited = b""
        if choice.annotations:
            cited = self._chunk(index, {**self._take(index), "annotations": list(choice.annotations)})
        extra = {"search_unavailable": choice.search_unavailable, "weights_version": choice.version}
        return cited + self._chunk(index, self._take(index), choice.finish_reason, **extra)

    def end(self) -> bytes:
        """After the last choice."""
        choices = list(self._done.values())
        last = event({**self._head(), "choices": [], "usage": usage(choices)}) if self.include_usage else b""
        return last + DONE

    def failed(self, error: ApiError) -> bytes:
        """In place of the rest, after what is held: OpenAI's client raises what it says."""
        held = b"".join(self._chunk(index, self._take(index)) for index in list(self._held))
        return held + event(error.body)

    def _take(self, index: int) -> dict[str, str]:
        return self._held.pop(index, {})

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **extra}
        return event({**self._head(), "choices": [choice]})

    def _head(self) -> dict[str, Any]:
        return {"id": self.identity, "object": "chat.completion.chunk", "created": self.created, "model": self.model}


def parsed(stream: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream of ours, `[DONE]` left out (tests and the bench)."""
    for block in stream.split(b"\n\n"):
        if block.startswith(b"data: ") and block != b"data: [DONE]":
            yield json.loads(block.removeprefix(b"data: "))
