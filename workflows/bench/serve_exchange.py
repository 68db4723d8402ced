"""One request to the service, as its client saw it. Pure: lines and times come in, a record comes out.

Always true: every request ends as exactly one of answered, refused, failed or hung; a refusal is a 429 and nothing
else; a stream without a `finish_reason` has failed, however quietly it ended.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"
    HUNG = "hung"  # no end within its deadline


@dataclass(frozen=True)
class Exchange:
    """Times are seconds of time.monotonic, which all processes of a machine share."""

    began: float
    ended: float
    outcome: Outcome
    status: int = 0  # of HTTP; 0 where none came
    problem: str = ""  # of one that failed or hung
    shaped: bool = True  # what was refused or failed was said in OpenAI's shape
    retry_after_s: float | None = None
    first_step_s: float | None = None  # from `began` to the first step of the agent
    texts_per_s: int = 0  # pieces of text within the fullest second of a stream
    finish_reason: str = ""
    version: int = -1  # of the weights
    sampled: int = 0  # tokens

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Listener:
    """What a response says, whole or line by line."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._texts: list[float] = []
        self._first_step: float | None = None
        self._choice: Mapping[str, Any] = {}
        self._usage: Mapping[str, Any] = {}
        self._error: Any = None

    def line(self, line: bytes, now: float) -> None:
        """A line of a stream. Raises ValueError for one that holds no JSON where it should."""
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            return
        self._chunk(json.loads(line[6:]), now)

    def whole(self, body: bytes) -> None:
        """A plain answer. Raises ValueError for one that is no JSON."""
        self._chunk(json.loads(body), self._began)

    def _chunk(self, chunk: Any, now: float) -> None:
        if not isinstance(chunk, Mapping):
            raise ValueError(f"the service sent {type(chunk).__name__}, not an object")
        self._error = self._error or chunk.get("error")
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content") or delta.get("reasoning_content"):
                self._texts.append(now)
            if choice.get("search_step") and self._first_step is None:
                self._first_step = now
            if choice.get("finish_reason"):
                self._choice = choice

    def ended(self, now: float, status: int = 200) -> Exchange:
        """The record of a response that was read to its end."""
        if self._error:
            return failed(self._began, now, status, _said(self._error), shaped=_shaped({"error": self._error}))
        if not self._choice:
            return failed(self._began, now, status, "the answer broke off", shaped=False)
        return Exchange(
            self._began,
            now,
            Outcome.ANSWERED,
            status,
            first_step_s=None if self._first_step is None else self._first_step - self._began,
            texts_per_s=fullest_second(self._texts),
            finish_reason=str(self._choice["finish_reason"]),
            version=int(self._choice.get("weights_version", -1)),
            sampled=int(self._usage.get("completion_tokens", 0)),
        )


def refusal(began: float, now: float, status: int, headers: Mapping[str, str], body: bytes) -> Exchange:
    """The record of a response that is an error. A 429 is a refusal, all else has failed."""
    try:
        said: Any = json.loads(body)
    except ValueError:
        said = {}
    shaped = _shaped(said)
    if status != 429:
        words = _said(said["error"]) if shaped else "no error of OpenAI's shape"
        return failed(began, now, status, f"{status}: {words}", shaped=shaped)
    after = headers.get("Retry-After", "")
    seconds = float(after) if after.isdecimal() else None
    return Exchange(began, now, Outcome.REFUSED, status, shaped=shaped, retry_after_s=seconds)


def failed(began: float, now: float, status: int, problem: str, *, shaped: bool) -> Exchange:
    """The record of a request that got neither an answer nor a refusal."""
    return Exchange(began, now, Outcome.FAILED, status, problem, shaped)


def hung(began: float, now: float) -> Exchange:
    """The record of a request that nobody ended."""
    return Exchange(began, now, Outcome.HUNG, problem=f"no end within {now - began:.0f} s", shaped=False)


def fullest_second(times: Sequence[float]) -> int:
    """The most of `times`, which ascend, that lie within less than one second."""
    return max((bisect_right(times, at) - bisect_right(times, at - 1.0) for at in times), default=0)


def _shaped(body: Any) -> bool:
    error = body.get("error") if isinstance(body, Mapping) else None
    return (
        isinstance(error, Mapping) and isinstance(error.get("message"), str) and {"type", "param", "code"} <= {*error}
    )


def _said(error: Any) -> str:
    return str(error.get("message") if isinstance(error, Mapping) else error)[:200]
