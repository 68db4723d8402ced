"""The bench answers at once, in one sentence, when it cannot measure."""

from __future__ import annotations

import sys

import pytest

from workflows import cli


def call(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mmsearch", *line.split()])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.mark.parametrize("command", ["bench rollout", "bench train"])
def test_a_bench_refuses_an_unknown_key_before_it_does_anything(monkeypatch, capsys, command):
    assert call(monkeypatch, f"{command} run.sede=1") == 2
    assert capsys.readouterr().err.startswith("mmsearch: There is no key run.sede; did you mean seed?")


def test_without_a_model_the_command_that_makes_it_is_named(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, f"bench rollout run.name=new run.storage={tmp_path}") == 2
    assert "`mmsearch sft run.name=new" in capsys.readouterr().err


def test_sft_without_its_base_model_names_the_command_too(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, f"bench train --stage sft run.name=new run.storage={tmp_path}") == 2
    assert "`mmsearch pretrain run.name=new" in capsys.readouterr().err


def test_the_grpo_step_needs_episodes_that_a_run_kept(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, f"bench train --stage grpo run.name=new run.storage={tmp_path}") == 2
    assert "`mmsearch demo run.name=new" in capsys.readouterr().err


def test_an_unknown_stage_is_refused(monkeypatch, capsys):
    assert call(monkeypatch, "bench train --stage demo") == 2
    assert "must be pretrain, sft or grpo" in capsys.readouterr().err
