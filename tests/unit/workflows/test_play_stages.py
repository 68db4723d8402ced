"""Stages one after the other, with stages that take no time."""

import contextlib
import io
import signal
import sys
import types
from contextlib import ExitStack

import pytest
from rich.console import Console

from workflows import settings
from workflows.play_stages import Play, spoken, tasks_of
from workflows.stage import Stage, StageBook


@pytest.fixture
def chosen(tmp_path):
    return settings.load(None, [f"run.storage={tmp_path}"])


@pytest.fixture
def ran(monkeypatch):
    """A module whose functions `a` and `b` leave their output; `b` is stopped when told so."""
    calls = []
    module = types.ModuleType("stages_of_a_test")

    def a(chosen):
        calls.append("a")
        chosen.run.folder.write_text("a.txt", "x")

    def b(chosen):
        calls.append("b")
        if "stop" in calls:
            calls.remove("stop")
            raise KeyboardInterrupt
        chosen.run.folder.write_text("b.txt", "x")

    module.a, module.b = a, b
    monkeypatch.setitem(sys.modules, "stages_of_a_test", module)
    return calls


STAGES = (
    Stage("a", "stages_of_a_test:a", "do a", settings=("run.seed",), outputs=("a.txt",), ray=False),
    Stage("b", "stages_of_a_test:b", "do b", settings=("grpo.steps",), needs=("a",), outputs=("b.txt",), ray=False),
)


def play(chosen) -> tuple[Play, str]:
    said = io.StringIO()
    with ExitStack() as stack:
        book, console = StageBook(chosen.run.folder), Console(file=said, width=200)
        played = Play(tasks_of(STAGES, chosen), book, {"a": 100.0, "b": 200.0}, stack, console)
        played.all()
    return played, said.getvalue()


def test_all_stages_run_in_order_and_a_second_time_none(chosen, ran):
    _, said = play(chosen)
    assert ran == ["a", "b"]
    assert "2 of 2 stages, about 5 min" in said
    assert "about 2 min; about 5 min left in all" in said
    played, said = play(chosen)
    assert ran == ["a", "b"]
    assert "every stage is done already" in said
    assert said.count("reused") == 2
    assert played.reused == {"a", "b"}


def test_what_was_stopped_is_continued_and_what_was_done_is_not_done_again(chosen, ran):
    ran.append("stop")
    with pytest.raises(KeyboardInterrupt):
        play(chosen)
    _, said = play(chosen)
    assert [name for name in ran if name != "stop"] == ["a", "b", "b"]
    assert "It was begun before and continues" in said


def test_an_interrupt_that_a_library_swallows_stops_before_the_next_stage(chosen, ran, monkeypatch):
    module = sys.modules["stages_of_a_test"]
    plain = module.a

    def swallowing(settings):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        plain(settings)

    monkeypatch.setattr(module, "a", swallowing)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        play(chosen)
    assert ran == ["a"]
    assert signal.getsignal(signal.SIGINT) is before
    _, said = play(chosen)
    assert ran == ["a", "b"]
    assert "reused" in said


def test_a_changed_setting_touches_its_stage_alone(chosen, ran, tmp_path):
    play(chosen)
    other = settings.load(None, [f"run.storage={tmp_path}", "grpo.steps=7"])
    _, said = play(other)
    assert ran == ["a", "b", "b"]
    assert "configuration has changed" in said


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (89, "89 s"), (300, "5 min"), (7200, "2.0 h")])
def test_durations_are_spoken(seconds, words):
    assert spoken(seconds) == words
