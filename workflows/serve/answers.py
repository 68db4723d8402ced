"""What a client reads when an episode has ended: `chat.completion`, with evidence as annotations. Pure.

Extensions, all of them where OpenAI's client leaves unknown fields alone: `search_steps`, `search_unavailable` and
`weights_version` beside a choice's message, `reasoning_content` in it (the field that others use, too), `tool_calls`
and `cost_usd` in `usage`. Offsets of annotations count Unicode code points of the content, `end_index` exclusive: they
name the `[n]` that cites.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.agent.episode import TOO_LONG
from actors.agent.trajectory import Ending, Evidence, Failure, Outcome, SegmentKind, Trajectory
from actors.agent.untrusted import one_line
from workflows.serve import errors
from workflows.serve.errors import ApiError

UNAVAILABLE = "Searching was unavailable"
ANSWERED_WITHOUT = f"({UNAVAILABLE}, so this is from what the model knows.)"
_CITATION = re.compile(r"\[(\d{1,3})\]")
_SHOWN = 3  # pieces of evidence that stand in for an answer that there is not
_SHOWN_CHARS = 200  # of each


@dataclass(frozen=True)
class Reached:
    """A bound of the request that cut something off: `finish_reason` (max_tool_calls | max_cost | max_seconds), and a
    sentence that says so."""

    reason: str
    says: str


@dataclass(frozen=True)
class Answered:
    """One choice: what the message says, why it ended there, and what it took."""

    content: str
    reasoning: str
    finish_reason: str  # stop | length | max_turns | max_tool_calls | max_cost | max_seconds
    annotations: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]
    question_tokens: int  # of the prompt; choices of one request share it
    found_tokens: int  # of what searches brought, as the model read it
    completion_tokens: int  # sampled
    tool_calls: int
    cost_usd: float
    version: int  # of the weights that sampled last; -1 where nothing was sampled
    search_unavailable: bool


def failure_of(trajectory: Trajectory, reached: Reached | None) -> ApiError | None:
    """Why there is nothing to tell; None where there is. A bound of the request is no failure."""
    if trajectory.failure is Failure.INFRA and reached is None:
        return errors.unavailable("The engine failed while it answered: ask again.", 1.0)
    if trajectory.failure is Failure.DATA:
        code = "context_length_exceeded" if trajectory.problem == TOO_LONG else None
        return errors.invalid(f"The question cannot be asked: {one_line(trajectory.problem)}.", "messages", code=code)
    return None


def answered(
    trajectory: Trajectory,
    content: str,
    reasoning: str,
    steps: Sequence[dict[str, Any]],
    finish_reason: str,
) -> Answered:
    """The choice that an episode makes."""
    calls = [call.result for call in trajectory.tool_calls if call.executed]
    return Answered(
        content=content,
        reasoning=reasoning,
        finish_reason=finish_reason,
        annotations=citations_of(content, trajectory.evidence),
        steps=tuple(steps),
        question_tokens=_tokens(trajectory, SegmentKind.PROMPT),
        found_tokens=_tokens(trajectory, SegmentKind.OBSERVATION),
        completion_tokens=trajectory.sampled_tokens,
        tool_calls=len(calls),
        cost_usd=sum(result.cost_usd for result in calls),
        version=max(trajectory.versions, default=-1),
        search_unavailable=search_unavailable(trajectory),
    )


def finish_reason(trajectory: Trajectory, reached: Reached | None) -> str:
    """Why a choice ended. What ended the episode comes before a bound that only kept it from searching on."""
    if trajectory.ending is Ending.OUT_OF_TURNS:
        return "max_turns"
    if trajectory.ending is Ending.OUT_OF_TOKENS:
        return "length"
    return reached.reason if reached is not None else "stop"


def search_unavailable(trajectory: Trajectory) -> bool:
    """Whether the agent searched and every search failed for reasons that are not its own."""
    outcomes = [call.result.outcome for call in trajectory.tool_calls if call.executed]
    return bool(outcomes) and all(outcome in (Outcome.INFRA_ERROR, Outcome.REFUSED) for outcome in outcomes)


def known_so_far(trajectory: Trajectory, reached: Reached | None) -> str:
    """In place of an answer: why there is none, and what was found."""
    says = [reached.says] if reached is not None else []
    if trajectory.ending is Ending.OUT_OF_TURNS:
        turns = sum(segment.kind is SegmentKind.ACTION for segment in trajectory.segments)
        says.append(f"There is no answer within {turns} turn{'s' * (turns != 1)}.")
    elif trajectory.ending is Ending.OUT_OF_TOKENS:
        says.append("There was no room left for an answer.")
    elif not says:
        says.append("The model wrote no answer.")
    if search_unavailable(trajectory):
        says.append(f"{UNAVAILABLE}.")
    found = [f"[{item.number}] {_short(item)}" for item in trajectory.evidence[-_SHOWN:]]
    return "\n".join([" ".join([*says, "What was found:"]), *found]) if found else " ".join(says)


def citations_of(content: str, evidence: Sequence[Evidence]) -> tuple[dict[str, Any], ...]:
    """One `url_citation` for each `[n]` of the content that names evidence."""
    by_number = {item.number: item for item in evidence}
    return tuple(
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": mark.start(),
                "end_index": mark.end(),
                "title": one_line(item.title),
                "url": web_address(item.url),
            },
        }
        for mark in _CITATION.finditer(content)
        if (item := by_number.get(int(mark[1]))) is not None
    )


def web_address(url: str) -> str:
    """`url` if it is one of the web, else "": clients make links of it, and `javascript:` is an address, too."""
    url = one_line(url)
    return url if url.lower().startswith(("http://", "https://")) else ""


def completion(identity: str, created: int, model: str, choices: Sequence[Answered]) -> dict[str, Any]:
    """The whole answer to a plain request."""
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": index,
                "finish_reason": choice.finish_reason,
                "logprobs": None,
                "message": {
                    "role": "assistant",
                    "content": choice.content,
                    "refusal": None,
                    "annotations": list(choice.annotations),
                    "reasoning_content": choice.reasoning,
                },
                "search_steps": list(choice.steps),
                "search_unavailable": choice.search_unavailable,
                "weights_version": choice.version,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage(choices),
    }


def usage(choices: Sequence[Answered]) -> dict[str, Any]:
    """Of all choices together; the question is read once for all, what searches brought once for each."""
    prompt = max((choice.question_tokens for choice in choices), default=0)
    prompt += sum(choice.found_tokens for choice in choices)
    sampled = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
        "tool_calls": sum(choice.tool_calls for choice in choices),
        "cost_usd": round(sum(choice.cost_usd for choice in choices), 6),
    }


def _tokens(trajectory: Trajectory, kind: SegmentKind) -> int:
    return sum(segment.expanded_length for segment in trajectory.segments if segment.kind is kind)


def _short(item: Evidence) -> str:
    """Its beginning, in one line in which nothing looks like a citation of ours."""
    words = _CITATION.sub(r"(\1)", one_line(f"{item.title}: {item.text}" if item.title else item.text))
    return words if len(words) <= _SHOWN_CHARS else f"{words[: _SHOWN_CHARS - 1]}…"
