"""An episode for a person's eyes: its steps as they happen, and the whole of it as one JSON document."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.text import Text

from actors.agent.protocol import Action, Answer, ImageSearch, TextSearch
from actors.agent.trajectory import Ending, Evidence, Question, SegmentKind, Tool, ToolRequest, ToolResult, Trajectory

SHOWN_CHARS = 160  # of one result in the terminal; the JSON document has all


class StepPrinter:
    """An `agent.seams.Observer` that prints, and keeps the steps as plain values in `steps`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self.steps: list[dict[str, Any]] = []

    def __call__(self, event: str, detail: dict[str, Any]) -> None:
        if event == "turn":
            self.steps.append({"turn": detail["number"]})
            self._began = time.monotonic()
        elif event == "action":
            self._action(detail)
        elif event == "result":
            self._result(detail["request"], detail["result"])

    def _action(self, detail: dict[str, Any]) -> None:
        step = self.steps[-1]
        seconds = time.monotonic() - self._began
        step |= {"reason": detail["reason"], "action": action_document(detail["action"]), "seconds": round(seconds, 3)}
        if detail["problem"]:
            step["problem"] = detail["problem"]
        self._say(f"{step['turn']}. ", detail["reason"] or "(no reason given)", "bold")
        if detail["problem"]:
            self._say("   ! ", detail["problem"], "yellow")
        if not isinstance(detail["action"], Answer) and detail["action"] is not None:
            self._say("   > ", action_words(detail["action"]), "cyan")

    def _result(self, request: ToolRequest, result: ToolResult) -> None:
        self.steps[-1]["result"] = {
            "outcome": result.outcome.value,
            "message": result.message,
            "provider": result.provider,
            "seconds": round(result.latency_s, 3),
            "crop_box": list(result.crop_box) if result.crop_box else None,
            "crop": result.crop.sha256 if result.crop else None,
            "evidence": [evidence_document(item) for item in result.evidence],
        }
        if result.crop_box:
            returned = ", given back as a picture" if result.crop else ""
            self._say("     ", "cut out: pixels {}, {} to {}, {}".format(*result.crop_box) + returned, "dim")
        if result.message:
            self._say("     ", result.message, "yellow")
        for item in result.evidence:
            self._say(f"     [{item.number}] ", _short(item), "")
        self._say(
            "     ", f"{result.outcome.value}, {result.provider or 'nobody asked'}, {result.latency_s:.2f} s", "dim"
        )

    def conclude(self, trajectory: Trajectory, right: tuple[str, ...] = ()) -> None:
        """The answer, what it rests on, and what it took."""
        if trajectory.ending is Ending.ANSWERED:
            self._say("answer: ", trajectory.answer, "bold green")
        elif trajectory.ending is Ending.GAVE_UP:
            self._say("no answer: ", "the agent gave up for lack of information", "bold yellow")
        else:
            self._say("no answer: ", trajectory.problem or trajectory.ending.value, "bold red")
        for item in cited(trajectory):
            self._say(f"  [{item.number}] ", f"{_short(item)}  {item.url}", "green")
        if right:
            self._say("right: ", " | ".join(right), "dim")
        searched = f"{trajectory.searches} searches, {trajectory.sampled_tokens} tokens, {trajectory.seconds:.1f} s"
        self._say("", searched, "dim")

    def _say(self, before: str, words: str, style: str) -> None:
        """What the model and the world wrote is text: never markup, never control characters."""
        clean = "".join(c if c.isprintable() else " " for c in words)
        self._console.print(Text(before) + Text(clean, style=style))


def document(question: Question, trajectory: Trajectory, steps: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """The episode as one JSON value. Evidence is what the answer cites; all that was found is in the steps."""
    written = [segment.text for segment in trajectory.segments if segment.kind is SegmentKind.ACTION]
    return {
        "question": question.text,
        "images": [{"sha256": ref.sha256, "width": ref.width, "height": ref.height} for ref in question.images],
        "model": model,
        "answer": trajectory.answer if trajectory.ending is Ending.ANSWERED else None,
        "ending": trajectory.ending.value,
        "failure": trajectory.failure.value,
        "problem": trajectory.problem,
        "evidence": [evidence_document(item) for item in cited(trajectory)],
        "steps": [{**step, "text": text} for step, text in zip(steps, written, strict=False)],
        "searches": trajectory.searches,
        "sampled_tokens": trajectory.sampled_tokens,
        "seconds": round(trajectory.seconds, 3),
    }


def cited(trajectory: Trajectory) -> list[Evidence]:
    """What the answer names, in its order; numbers of nothing are left out."""
    by_number = {item.number: item for item in trajectory.evidence}
    return [by_number[number] for number in trajectory.citations if number in by_number]


def action_words(action: Action) -> str:
    """What is done, in words."""
    if isinstance(action, TextSearch):
        return f'search text: "{action.query}"'
    if isinstance(action, Answer):
        return f"answer: {action.text}"
    which = f" of image {action.image_number}" if action.image_number != 1 else ""
    if action.box is not None:
        return f"search image: box {', '.join(map(str, action.box))} (thousandths){which}"
    if action.expression:
        return f'search image: "{action.expression}"{which}'
    return f"search image: the whole picture{which}"


def action_document(action: Action | None) -> dict[str, Any] | None:
    """An action as plain values; None for a turn without one."""
    if action is None:
        return None
    if isinstance(action, TextSearch):
        return {"tool": Tool.TEXT_SEARCH.value, "query": action.query}
    if isinstance(action, ImageSearch):
        box = list(action.box) if action.box else None
        expression = {"expression": action.expression, "box": box, "image": action.image_number}
        return {"tool": Tool.IMAGE_SEARCH.value, **expression}
    return {"answer": action.text, "citations": list(action.citations)}


def evidence_document(item: Evidence) -> dict[str, Any]:
    """Evidence as plain values."""
    return {
        "number": item.number,
        "title": item.title,
        "text": item.text,
        "url": item.url,
        "provider": item.provider,
        "turn": item.turn,
        "image_number": item.image_number or None,
        "crop_box": list(item.crop_box) if item.crop_box else None,
    }


def _short(item: Evidence) -> str:
    words = " ".join(f"{item.title}: {item.text}".split())
    return words if len(words) <= SHOWN_CHARS else f"{words[: SHOWN_CHARS - 1]}…"
