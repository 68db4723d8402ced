"""An episode for a person's eyes: its steps as they happen, and the whole of it as one JSON document."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from actors.agent.protocol import Action, Answer, ImageSearch, TextSearch
from actors.agent.trajectory import Ending, Evidence, Question, SegmentKind, Tool, ToolResult, Trajectory

SHOWN_CHARS = 160  # of one result in the terminal; the JSON document has all


class StepLines:
    """Steps as plain values: printed as they come, and kept in `steps`. Where they come from is not known here."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self.steps: list[dict[str, Any]] = []

    def turn(self, number: int) -> None:
        """A turn begins to be written."""
        self.steps.append({"turn": number})
        self._began = time.monotonic()

    def action(self, reason: str, action: Mapping[str, Any] | None, problem: str) -> None:
        """What the turn says and does. `action`: as `action_document` gives it."""
        step = self.steps[-1]
        seconds = time.monotonic() - self._began
        step |= {"reason": reason, "action": action, "seconds": round(seconds, 3)}
        if problem:
            step["problem"] = problem
        self._say(f"{step['turn']}. ", reason or "(no reason given)", "bold")
        if problem:
            self.notice(problem)
        if action is not None and "answer" not in action:
            self._say("   > ", _search_words(action), "cyan")

    def result(self, result: Mapping[str, Any]) -> None:
        """What a search found. `result`: as `result_document` gives it, or the service."""
        self.steps[-1]["result"] = dict(result)
        if box := result["crop_box"]:
            returned = ", given back as a picture" if result.get("crop") else ""
            self._say("     ", "cut out: pixels {}, {} to {}, {}".format(*box) + returned, "dim")
        if result["message"]:
            self._say("     ", result["message"], "yellow")
        for item in result["evidence"]:
            self._say(f"     [{item['number']}] ", _short(item), "")
        took = f"{result['outcome']}, {result['provider'] or 'nobody asked'}, {result['seconds']:.2f} s"
        self._say("     ", took, "dim")

    def notice(self, words: str) -> None:
        """What a person should know of the turn."""
        self._say("   ! ", words, "yellow")

    def conclude(self, told: Mapping[str, Any], right: Sequence[str] = ()) -> None:
        """The answer, what it rests on, and what it took. `told`: the episode's document."""
        if told["answer"] is not None:
            self._say("answer: ", told["answer"], "bold green")
        elif told["ending"] == Ending.GAVE_UP.value:
            self._say("no answer: ", "the agent gave up for lack of information", "bold yellow")
        else:
            self._say("no answer: ", told["problem"] or told["ending"], "bold red")
        for item in told["evidence"]:
            self._say(f"  [{item['number']}] ", f"{_short(item)}  {item['url']}", "green")
        if right:
            self._say("right: ", " | ".join(right), "dim")
        took = f"{told['searches']} searches, {told['sampled_tokens']} tokens, {told['seconds']:.1f} s"
        self._say("", took, "dim")

    def _say(self, before: str, words: str, style: str) -> None:
        """What the model and the world wrote is text: never markup, never control characters."""
        clean = "".join(c if c.isprintable() else " " for c in words)
        self._console.print(Text(before) + Text(clean, style=style))


class StepPrinter(StepLines):
    """An `agent.seams.Observer` that prints the episode it watches."""

    def __call__(self, event: str, detail: dict[str, Any]) -> None:
        if event == "turn":
            self.turn(detail["number"])
        elif event == "action":
            self.action(detail["reason"], action_document(detail["action"]), detail["problem"])
        elif event == "result":
            self.result(result_document(detail["result"]))


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
    return f"answer: {action.text}" if isinstance(action, Answer) else _search_words(action_document(action) or {})


def _search_words(search: Mapping[str, Any]) -> str:
    if search["tool"] == Tool.TEXT_SEARCH.value:
        return f'search text: "{search["query"]}"'
    which = f" of image {search['image']}" if search["image"] != 1 else ""
    if search["box"] is not None:
        return f"search image: box {', '.join(map(str, search['box']))} (thousandths){which}"
    if search["expression"]:
        return f'search image: "{search["expression"]}"{which}'
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


def result_document(result: ToolResult) -> dict[str, Any]:
    """A search's result as plain values."""
    return {
        "outcome": result.outcome.value,
        "message": result.message,
        "provider": result.provider,
        "seconds": round(result.latency_s, 3),
        "crop_box": list(result.crop_box) if result.crop_box else None,
        "crop": result.crop.sha256 if result.crop else None,
        "evidence": [evidence_document(item) for item in result.evidence],
    }


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


def _short(item: Mapping[str, Any]) -> str:
    words = " ".join(f"{item['title']}: {item['text']}".split())
    return words if len(words) <= SHOWN_CHARS else f"{words[: SHOWN_CHARS - 1]}…"
