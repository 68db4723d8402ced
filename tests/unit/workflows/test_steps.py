"""What a person sees of an episode, and what a machine gets."""

import io
import json

import pytest
from rich.console import Console

from actors.agent.protocol import Answer, ImageSearch, TextSearch
from actors.agent.trajectory import Ending, ImageRef, Outcome, ToolResult
from tests.unit.workflows.evaluate.evaluation_world import QUESTION, Finds, Scripted, renderer
from workflows.steps import StepPrinter, action_document, action_words, document


@pytest.fixture(scope="module")
def words():
    return renderer()


async def played(words, turns):
    from actors.agent.episode import Limits, run_episode
    from actors.agent.prompts import PRESETS
    from actors.agent.seams import Sampling

    said = io.StringIO()
    printer = StepPrinter(Console(file=said, width=120))
    trajectory = await run_episode(
        QUESTION, 0, PRESETS["compact"], Scripted(words, turns), words, Finds(),
        sampling=Sampling(), limits=Limits(), clock=lambda: 0.0, observer=printer,
    )  # fmt: skip
    printer.conclude(document(QUESTION, trajectory, printer.steps, "m"), ("Ada Lune",))
    return trajectory, printer, said.getvalue()


CROP = "<reason>a red star is unknown.</reason><img_search>red star</img_search>"
ANSWER = "<reason>it is in [1].</reason><answer>Ada Lune [1]</answer>"


async def test_steps_are_printed_with_tool_results_and_the_evidence_of_the_answer(words):
    _, _, said = await played(words, [CROP, ANSWER])
    for line in ("1. a red star is unknown.", 'search image: "red star"', "[1] Velo: the founder of Velo is Ada Lune."):
        assert line in said
    assert "answer: Ada Lune\n  [1] Velo" in said
    assert "right: Ada Lune" in said
    assert "1 searches" in said


async def test_the_document_holds_every_step_and_survives_json(words):
    trajectory, printer, _ = await played(words, [CROP, "no tags", ANSWER])
    told = json.loads(json.dumps(document(QUESTION, trajectory, printer.steps, "m")))
    assert [step["turn"] for step in told["steps"]] == [1, 2, 3]
    assert told["steps"][0]["action"] == {"tool": "image_search", "expression": "red star", "box": None, "image": 1}
    assert told["steps"][0]["result"]["evidence"][0]["title"] == "Velo"
    assert (told["steps"][1]["action"], told["steps"][1]["text"].strip()) == (None, "no tags")
    assert (told["answer"], [item["number"] for item in told["evidence"]]) == ("Ada Lune", [1])


async def test_a_crop_that_was_given_back_is_told(words, monkeypatch):
    async def crops(self, request, *, deadline):
        return ToolResult(Outcome.EMPTY, crop_box=(1, 2, 3, 4), crop=ImageRef("b" * 64, 2, 2))

    monkeypatch.setattr(Finds, "call", crops)
    _, printer, said = await played(words, [CROP, ANSWER])
    assert "cut out: pixels 1, 2 to 3, 4, given back as a picture" in said
    assert printer.steps[0]["result"]["crop"] == "b" * 64


async def test_what_the_model_writes_can_neither_paint_nor_move_the_cursor(words):
    _, _, said = await played(words, ["<reason>[red]\x1b[2J</reason><answer>[bold]x</answer>"])
    assert "[red]" in said
    assert "\x1b" not in said


async def test_an_episode_without_an_answer_says_why(words):
    trajectory, printer, said = await played(words, ["no tags"] * 6)
    assert trajectory.ending is Ending.OUT_OF_TURNS
    assert "no answer: no action at the end of the turn" in said
    assert document(QUESTION, trajectory, printer.steps, "m")["answer"] is None


@pytest.mark.parametrize(
    ("action", "spoken"),
    [
        (TextSearch("x y"), 'search text: "x y"'),
        (ImageSearch(), "search image: the whole picture"),
        (ImageSearch("red star", None, 2), 'search image: "red star" of image 2'),
        (ImageSearch("", (0, 0, 500, 500)), "search image: box 0, 0, 500, 500 (thousandths)"),
        (Answer("x", (1,)), "answer: x"),
    ],
)
def test_every_action_has_words_and_a_document(action, spoken):
    assert action_words(action) == spoken
    assert json.dumps(action_document(action))
