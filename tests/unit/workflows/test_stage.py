"""When a stage is reused, continued or made anew, and what is said about the time it takes."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import Folder
from workflows.stage import Due, Stage, StageBook, fingerprints, remaining


@dataclass(frozen=True)
class Part:
    steps: int = 3
    rate: float = 1e-3
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    base: Part = field(default_factory=Part)
    sft: Part = field(default_factory=Part)
    other: Part = field(default_factory=Part)
    seed: int = 0


BASE = Stage("base", "m:f", "makes", settings=("base", "seed"), outputs=("base/config.json",))
SFT = Stage("sft", "m:f", "tunes", settings=("sft.steps",), needs=("base",), outputs=("sft/config.json",))
STAGES = (BASE, SFT)


@pytest.fixture
def book(tmp_path):
    return StageBook(Folder(tmp_path))


def test_a_fingerprint_follows_what_matters_and_nothing_else():
    before = fingerprints(STAGES, Settings())
    assert fingerprints(STAGES, Settings(other=Part(9), sft=Part(rate=0.5))) == before
    assert fingerprints(STAGES, Settings(base=Part(rate=1e-3))) == before
    assert fingerprints(STAGES, Settings(seed=1))["base"] != before["base"]
    changed = fingerprints(STAGES, Settings(sft=Part(4)))
    assert (changed["base"] == before["base"], changed["sft"] == before["sft"]) == (True, False)


def test_what_changes_upstream_changes_everything_after_it():
    before, after = fingerprints(STAGES, Settings()), fingerprints(STAGES, Settings(base=Part(4)))
    assert all(before[stage.name] != after[stage.name] for stage in STAGES)
    newer = fingerprints((replace(BASE, version=2), SFT), Settings())
    assert all(before[stage.name] != newer[stage.name] for stage in STAGES)


def test_a_setting_that_does_not_exist_is_a_mistake_in_the_stage():
    with pytest.raises(AttributeError):
        fingerprints((replace(BASE, settings=("nothing",)),), Settings())


def test_a_stage_is_new_then_continued_then_reused(book, tmp_path):
    assert book.due(BASE, "f") is Due.NEW
    book.note(BASE, "f", 2.0, complete=False)
    assert (book.due(BASE, "f"), book.spent(BASE, "f")) == (Due.CONTINUED, 2.0)
    Folder(tmp_path).write_text("base/config.json", "{}")
    assert book.due(BASE, "f") is Due.CONTINUED  # outputs alone do not make it complete
    book.note(BASE, "f", 5.0, complete=True)
    assert (book.due(BASE, "f"), book.spent(BASE, "f")) == (Due.REUSED, 5.0)


def test_a_complete_stage_whose_outputs_are_gone_is_done_again(book):
    book.note(BASE, "f", 5.0, complete=True)
    assert book.due(BASE, "f") is Due.CONTINUED


def test_another_configuration_is_not_reused_and_its_time_does_not_count(book, tmp_path):
    Folder(tmp_path).write_text("base/config.json", "{}")
    book.note(BASE, "f", 5.0, complete=True)
    assert (book.due(BASE, "g"), book.spent(BASE, "g")) == (Due.CHANGED, 0.0)


def test_making_anew_what_a_later_stage_was_made_from_is_told_only_when_that_stage_refuses(book):
    rl = replace(SFT, name="rl", needs=("base", "sft"), refuses=True)
    stages, marks = (BASE, SFT, rl), {"base": "f", "sft": "f", "rl": "f"}
    for stage in stages:
        assert not book.mixture(stages, marks)
        assert not book.mixture(stages, dict.fromkeys(marks, "g"))  # nothing rests on it yet
        book.note(stage, "f", 1.0, complete=False)
    assert not book.mixture(stages, marks)
    assert not book.mixture(stages, {**marks, "rl": "g"})  # its own settings are its own business
    assert book.mixture(stages, {"base": "f", "sft": "g", "rl": "g"}) == "rl was made from another sft"
    assert not book.mixture((BASE, SFT, replace(rl, refuses=False)), {"base": "f", "sft": "g", "rl": "g"})


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"fingerprint": "f"}'])
def test_a_marker_that_cannot_be_read_is_none(book, tmp_path, text):
    Folder(tmp_path).write_text("stages/base.json", text)
    assert book.due(BASE, "f") is Due.NEW


def test_remaining_time_follows_the_pace_of_what_is_done():
    expected = {"a": 100.0, "b": 50.0, "c": 50.0}
    assert remaining(expected, {}) == 200
    assert remaining(expected, {"a": 200.0}) == 200  # half as fast: twice the hundred that is left
    assert remaining(expected, {"a": 100.0, "b": 50.0, "c": 50.0}) == 0


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e4)),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e4)),
)
def test_remaining_time_is_never_negative_nor_wild(expected, done):
    rest = sum(seconds for name, seconds in expected.items() if name not in done)
    assert 0 <= remaining(expected, done) <= 4 * rest + 1e-9
