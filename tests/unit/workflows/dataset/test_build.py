"""Which parts of a dataset are made again."""

import pytest
from rich.console import Console

from cluster.errors import UserError
from workflows import settings
from workflows.dataset import build
from workflows.run_folder import RunFolder


@pytest.fixture
def chosen(tmp_path):
    return settings.load(None, [f"run.storage={tmp_path}"])


def made(chosen, *, rows: int) -> bool:
    """Whether the test questions count as made, by a report that says so many rows were written."""
    part, folder = build.parts_of(chosen)[1], RunFolder(chosen.run.folder)
    report = {part.name: {"rows": rows, "identity": build.identity_of(chosen, part, folder)}}
    return build._done(report, part, chosen, folder)


def test_a_part_whose_shards_are_gone_is_made_again(chosen):
    assert not made(chosen, rows=5)
    chosen.run.folder.write_bytes("dataset/questions/test/part-0.parquet", b"")
    assert made(chosen, rows=5)


def test_a_part_in_which_nothing_could_be_kept_is_not_made_again(chosen):
    assert made(chosen, rows=0)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_report_that_cannot_be_read_is_none(chosen, text):
    folder = RunFolder(chosen.run.folder).dataset
    folder.write_text(build.REPORT, text)
    assert build._report(folder) == {}


class Unreadable:
    """A source that turns out not to be there."""

    def units(self, part):
        raise UserError("There are no Parquet files there.")


def test_a_source_that_cannot_be_read_costs_nothing_of_what_is_there(chosen, monkeypatch):
    part, folder = build.parts_of(chosen)[1], RunFolder(chosen.run.folder)
    folder.root.write_bytes("dataset/questions/test/part-0.parquet", b"rows")
    told = {part.name: {"rows": 5, "identity": {}}}
    folder.dataset.write_json(build.REPORT, told)
    monkeypatch.setattr(build, "source_of", lambda _: Unreadable())
    with pytest.raises(UserError, match="no Parquet files"):
        build._build(chosen, part, folder, told, Console(quiet=True))
    assert folder.root.read_bytes("dataset/questions/test/part-0.parquet") == b"rows"
    assert build._report(folder.dataset) == told


def test_half_a_part_does_not_pass_for_the_one_that_was_there(chosen, monkeypatch):
    part, folder = build.parts_of(chosen)[1], RunFolder(chosen.run.folder)
    identity = build.identity_of(chosen, part, folder)
    told = {part.name: {"rows": 5, "identity": identity}, "sft": {"rows": 1}}

    def write(played, chosen_keys, target, shards):
        target.write_bytes("part-0.parquet", b"a half")
        raise OSError("the disk is full")

    monkeypatch.setattr(build.pipeline, "play", lambda units, plan: [])
    monkeypatch.setattr(build.pipeline, "summaries", lambda played: [])
    monkeypatch.setattr(build, "choose", lambda rows, part: ["a"])
    monkeypatch.setattr(build.pipeline, "write", write)
    monkeypatch.setattr(build, "source_of", lambda _: Drawn())
    with pytest.raises(OSError, match="full"):
        build._build(chosen, part, folder, told, Console(quiet=True))
    left = build._report(folder.dataset)
    assert left == {"sft": {"rows": 1}}
    assert not build._done(left, part, chosen, folder)


class Drawn:
    def units(self, part):
        return [{}]
