"""What happens in an episode, as plain values that travel between processes and to the client.

    {"type": "turn", "number": 1}
    {"type": "reasoning", "text": "..."}                 grows while the turn is written
    {"type": "content", "text": "..."}                   the answer, likewise
    {"type": "search", "turn": 1, "tool": "image_search", "expression": "the red star", "image": 1, "box": null}
    {"type": "result", "turn": 1, "outcome": "ok", "evidence": [...], "crop_box": [x0, y0, x1, y1], "cost_usd": 0, ...}
    {"type": "problem", "turn": 2, "message": "..."}     a turn that was not well-formed
    {"type": "notice", "reason": "max_cost", "message": "..."}        of the service: a bound, or no search at all

Reasoning and content are told in pieces; everything else is a step. Always true: the pieces of content together are the
content of the choice, and it is the same where nobody listens; steps hold what was retrieved and what the model wrote,
and of pictures no more than thumbnails, where they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.agent.protocol import Answer
from actors.agent.trajectory import Ending, Evidence, SegmentKind, ToolRequest, ToolResult, Trajectory
from actors.agent.untrusted import one_line
from workflows.serve import answers
from workflows.serve.answers import Answered, Reached
from workflows.serve.partial import Growing, answer_of, content_of, reasoning_of
from workflows.steps import action_document, evidence_document, result_document

Report = dict[str, Any]
TEXTS = {"reasoning": "reasoning_content", "content": "content"}  # of events that grow, the field of a delta
_MESSAGE_CHARS = 500  # of a provider's own words


def _nobody(report: Report) -> None:
    """A plain request: it reads the end alone."""


class Reporter:
    """An `agent.seams.Observer` of one choice. Give it the text of a turn while it is written, and the end.

    `thumbnails`: data URLs by SHA-256, from which results take those of their pictures; None leaves them out.
    """

    def __init__(
        self,
        send: Callable[[Report], None] | None = None,
        stop: Sequence[str] = (),
        thumbnails: Mapping[str, str] | None = None,
    ) -> None:
        self._send, self._thumbnails = send or _nobody, thumbnails
        self._turn = 0
        self._texts = {"reasoning": Growing(), "content": Growing(stop)}
        self.steps: list[Report] = []

    def __call__(self, event: str, detail: dict[str, Any]) -> None:
        if event == "turn":
            self._turn = detail["number"]
            for text in self._texts.values():
                text.begin()
            self._step({"type": "turn", "number": self._turn})
        elif event == "action":
            self._action(detail)
        elif event == "result":
            found = result_report(detail["request"], detail["result"], self._thumbnails)
            self._step({"type": "result", "turn": self._turn, **found})

    def wrote(self, text: str) -> None:
        """All of the present turn so far."""
        self._reads("reasoning", reasoning_of(text))
        self._reads("content", content_of(text))

    def conclude(self, trajectory: Trajectory, reached: Reached | None = None) -> Answered:
        """The choice, after the last pieces of it were told. Raises `ApiError` where there is nothing to tell."""
        if (error := answers.failure_of(trajectory, reached)) is not None:
            raise error
        content, reason = self._texts["content"], answers.finish_reason(trajectory, reached)
        last = trajectory.segments[-1] if trajectory.segments else None
        if trajectory.ending is Ending.OUT_OF_TOKENS and last is not None and last.kind is SegmentKind.ACTION:
            self.wrote(last.text)  # it was never told as a finished turn
        if reached is not None:
            self._step({"type": "notice", "reason": reached.reason, "message": reached.says})
        if answers.search_unavailable(trajectory):
            message = f"{answers.UNAVAILABLE}: every search failed."
            self._step({"type": "notice", "reason": "search_unavailable", "message": message})
        if not content.said:
            self._say(answers.known_so_far(trajectory, reached))
        elif answers.search_unavailable(trajectory):
            self._say(answers.ANSWERED_WITHOUT)
        if content.stopped and reason == "length":
            reason = "stop"
        self._tell("content", content.settle())
        return answers.answered(trajectory, content.told, self._texts["reasoning"].told, self.steps, reason)

    def _action(self, detail: dict[str, Any]) -> None:
        action, reason = detail["action"], reasoning_of(detail["text"], ended=True)
        self._reads("reasoning", reason, ended=True)
        if reason:
            self.steps.append({"type": "reasoning", "turn": self._turn, "text": reason})
        if detail["problem"]:
            self._step({"type": "problem", "turn": self._turn, "message": detail["problem"]})
        if isinstance(action, Answer):
            self._reads("content", answer_of(detail["text"]), ended=True)
        elif action is not None:
            self._step({"type": "search", "turn": self._turn, **(action_document(action) or {})})

    def _say(self, words: str) -> None:
        """In the service's own name."""
        self._texts["content"].begin()
        self._reads("content", words, ended=True)

    def _reads(self, kind: str, turn: str, *, ended: bool = False) -> None:
        self._tell(kind, self._texts[kind].reads(turn, ended=ended))

    def _tell(self, kind: str, words: str) -> None:
        if words:
            self._send({"type": kind, "text": words})

    def _step(self, step: Report) -> None:
        self.steps.append(step)
        self._send(step)


def result_report(request: ToolRequest, result: ToolResult, thumbnails: Mapping[str, str] | None = None) -> Report:
    """What a search found, and what it took. `crop` and `thumbnail` name pictures by their SHA-256."""
    shown = {}
    if thumbnails is not None:
        hashes = [picture.sha256 for picture in result.images]
        shown["thumbnails"] = {sha256: thumbnails[sha256] for sha256 in hashes if sha256 in thumbnails}
    return {
        "tool": request.tool.value,
        **result_document(result),
        "message": one_line(result.message)[:_MESSAGE_CHARS],
        "cost_usd": result.cost_usd,
        "cached": result.cached,
        "image": request.image_number if request.image is not None else None,
        "evidence": [_evidence(item) for item in result.evidence],
        **shown,
    }


def _evidence(item: Evidence) -> Report:
    thumbnail = item.thumbnail.sha256 if item.thumbnail else None
    return {**evidence_document(item), "url": answers.web_address(item.url), "thumbnail": thumbnail}
