"""`mmsearch report` as a person types it."""

from __future__ import annotations

import sys

import pytest

from tests.unit.workflows.report.made_run import made_run
from workflows import cli
from workflows.report.sources import read_run, run_at


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mmsearch", "report", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_it_says_where_the_page_is_and_what_is_not_in_it(tmp_path, monkeypatch, capsys):
    folder = made_run(tmp_path / "runs/mine")
    folder.delete("evaluate")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "mine", "--out", "page.html", "--episodes", "2") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(f"mmsearch evaluate run.storage={folder}")
    assert said[-1].startswith(f"report: {tmp_path / 'page.html'} (")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_what_is_no_run_is_one_sentence_and_code_two(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(f"mmsearch: There is no run at {tmp_path}: give the folder of a run")


def test_what_is_damaged_is_said(tmp_path, monkeypatch, capsys):
    folder = made_run(tmp_path / "run")
    folder.write_bytes("evaluate/results.json", b"{")
    assert call(monkeypatch, str(folder)) == 0
    assert "damaged: run: evaluate/results.json cannot be read and is left out." in capsys.readouterr().out


def test_a_variant_stands_beside_its_run_with_its_own_curves(tmp_path, monkeypatch, capsys):
    run = made_run(tmp_path / "runs/mine")
    (tmp_path / "runs/mine/costly").mkdir()
    for name in ("manifest.json", "metrics.jsonl"):
        run.write_bytes(f"costly/{name}", run.read_bytes(f"grpo/{name}"))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "mine", "mine/costly") == 0
    assert "not there yet" not in capsys.readouterr().out
    costly = read_run(run_at("mine/costly"), "costly")
    assert costly.curves["grpo"] == read_run(run, "mine").curves["grpo"]
    assert costly.settings == read_run(run, "mine").settings


def test_help_has_examples(monkeypatch, capsys):
    assert call(monkeypatch, "--help") == 0
    assert "mmsearch report embedded" in " ".join(capsys.readouterr().out.split())
