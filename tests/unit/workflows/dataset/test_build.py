"""Which parts of a dataset are made again."""

import pytest

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
