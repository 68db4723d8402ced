"""What the command answers: quickly, in one sentence, with the right exit code."""

from __future__ import annotations

import subprocess
import sys
import time
import types

import pytest

from cluster.errors import UserError
from workflows import cli, settings

COMMANDS = [
    "pretrain",
    "sft",
    "grpo",
    "evaluate",
    "demo",
    "dataset build",
    "dataset inspect",
    "ask what",
    "bench rollout",
    "bench train",
]


def call(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mmsearch", *line.split()])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def put_stage(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    module = types.ModuleType("workflows.sft")
    monkeypatch.setattr(module, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "workflows.sft", module)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_unknown_key_before_it_does_anything(monkeypatch, capsys, command):
    assert call(monkeypatch, f"{command} run.sede=1") == 2
    assert capsys.readouterr().err.startswith("mmsearch: There is no key run.sede; did you mean seed?")


def test_a_missing_file_and_a_missing_picture_are_one_sentence(monkeypatch, capsys):
    assert call(monkeypatch, "sft --config nowhere.yaml") == 2
    assert "no configuration file nowhere.yaml" in capsys.readouterr().err
    assert call(monkeypatch, "ask --image nowhere.png what") == 2
    assert capsys.readouterr().err == "mmsearch: There is no picture at nowhere.png.\n"


def test_a_question_is_found_among_settings_and_must_be_quoted(monkeypatch, capsys):
    assert cli.asked(["run.seed=1", "who is it?", "run.name=a"]) == ("who is it?", ["run.seed=1", "run.name=a"])
    assert cli.asked(["what is x = 3?"]) == ("what is x = 3?", [])
    assert cli.asked(["run.seed=1"]) == (None, ["run.seed=1"])
    assert call(monkeypatch, "ask who founded it run.seed=1") == 2
    assert capsys.readouterr().err == 'mmsearch: Put the question in quotes, as in `mmsearch ask "who founded it"`.\n'


def test_the_stage_gets_the_settings_with_the_words_applied(monkeypatch):
    seen = []
    put_stage(monkeypatch, seen.append)
    assert call(monkeypatch, "sft run.name=mine run.seed=3") == 0
    assert (seen[0].run.name, seen[0].run.seed) == ("mine", 3)


def test_a_user_error_inside_a_stage_is_one_sentence_and_code_two(monkeypatch, capsys):
    def run(_: object) -> None:
        raise UserError("The base model is missing; run mmsearch pretrain first.")

    put_stage(monkeypatch, run)
    assert call(monkeypatch, "sft") == 2
    assert capsys.readouterr().err == "mmsearch: The base model is missing; run mmsearch pretrain first.\n"


def test_control_c_is_one_sentence_and_code_130(monkeypatch, capsys):
    def run(_: object) -> None:
        raise KeyboardInterrupt

    put_stage(monkeypatch, run)
    assert call(monkeypatch, "sft") == 130
    assert "continues where it was" in capsys.readouterr().err


def test_a_bug_keeps_its_exception(monkeypatch):
    def run(_: object) -> None:
        raise ZeroDivisionError

    put_stage(monkeypatch, run)
    monkeypatch.setattr(sys, "argv", ["mmsearch", "sft"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("words", [["--help"], ["grpo", "run.sede=1"]])
def test_help_and_mistakes_answer_without_the_heavy_packages(words):
    program = (
        "import sys; sys.argv = ['mmsearch', *sys.argv[1:]]\n"
        "from workflows.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'ray', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().endswith("[]"), done.stdout
    assert time.monotonic() - started < 5  # under a second when the machine is idle


@pytest.mark.parametrize("path", sorted(settings.SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    assert settings.load(path.stem).run.name


def test_a_run_name_must_be_a_folders_name():
    with pytest.raises(UserError, match=r"run: name is 'a/b'"):
        settings.load(None, ["run.name=a/b"])


def test_results_go_to_runs_name_unless_told():
    assert settings.load(None, ["run.name=x"]).run.folder.address.endswith("/runs/x")
    assert settings.load(None, ["run.storage=s3://bucket/x"]).run.folder.address == "s3://bucket/x"
