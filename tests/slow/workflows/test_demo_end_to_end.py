"""`mmsearch demo` as a person runs it, in miniature: every stage real, stopped in the middle, continued, and reused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from workflows.stage import Due, StageBook, fingerprints

pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).resolve().parents[3]
SMALL = {
    "extends": "embedded",
    "world": {"head": 4, "tail_train": 12, "tail_test": 8},
    "pretrain": {"steps": 4, "seeing_steps": 1, "reading_steps": 1, "warmup_steps": 1, "corpus": 400, "batch": 8},
    "dataset": {"train_questions": 24, "test_questions": 6, "conversations": 12, "shards": 1, "actors": 1},
    "sft": {"steps": 2, "warmup_steps": 1, "batch": 4},
    "grpo": {
        "steps": 1,
        "groups_per_step": 2,
        "group_size": 2,
        "start_check_questions": 0,
        "max_tokens": 16,
        "evaluation": {"every": 1, "questions": 4},
    },
    "evaluate": {"arms": ["rag", "sft", "rl"], "max_tokens": 24},
    "cluster": {"address": "local", "num_cpus": 2, "oversubscribe": True, "object_store_mib": 256},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "run": {"name": "small", "storage": str(root / "run")}}))
    return path


def start(config: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workflows.cli", *words, "--config", str(config)]
    log = (config.parent / f"{words[0]}.log").open("w+")
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}
    )


def said(config: Path, command: str) -> str:
    return (config.parent / f"{command}.log").read_text()


def due(config: Path) -> dict[str, Due]:
    from workflows import demo, settings

    chosen = settings.load(config)
    marks, book = fingerprints(demo.STAGES, chosen), StageBook(chosen.run.folder)
    return {stage.name: book.due(stage, marks[stage.name]) for stage in demo.STAGES}


def test_a_demo_that_is_stopped_continues_and_then_has_nothing_left_to_do(config):
    demo, marker = start(config, "demo"), config.parent / "run/stages/sft.json"
    while not marker.exists():
        assert demo.poll() is None, said(config, "demo")[-3000:]
        time.sleep(0.2)  # a process is waited for, not a clock
    demo.send_signal(signal.SIGINT)
    assert demo.wait(300) == 130, said(config, "demo")[-3000:]
    assert (due(config)["pretrain"], due(config)["dataset"], due(config)["grpo"]) == (Due.REUSED, Due.REUSED, Due.NEW)

    demo = start(config, "demo")
    assert demo.wait(900) == 0, said(config, "demo")[-3000:]
    told = said(config, "demo")
    assert "1/5 pretrain: reused" in told
    assert "2/5 dataset: reused" in told
    assert set(due(config).values()) == {Due.REUSED}
    for words in ("held-out questions", "time per stage", "peak memory", "mmsearch ask --example 0"):
        assert words in told
    facts = json.loads((config.parent / "run/demo.json").read_text())
    assert facts["reused"] == ["dataset", "pretrain"]
    assert 0 < facts["peak_memory_bytes"] < 12 << 30

    demo = start(config, "demo")
    assert demo.wait(120) == 0
    assert "every stage is done already" in said(config, "demo")
    assert "match" in said(config, "demo")  # the table is shown again
    assert (config.parent / "run/report.html").exists()


def test_a_second_seed_and_the_ablations_go_on_from_what_is_there_and_are_compared(config):
    demo = start(config, "demo", "--ablations")
    assert demo.wait(600) == 0, said(config, "demo")[-3000:]
    assert "4/11 grpo: reused" in said(config, "demo")
    assert "what was to be reached" in said(config, "demo")
    run = config.parent / "run"
    compared = json.loads((run / "comparison.json").read_text())
    assert list(compared["arms"]) == ["rag", "sft", "rl", "no_crop", "no_penalty", "unbalanced"]
    assert {target["says"] for target in compared["targets"]} >= {"RL over SFT", "fewer searches than RAG"}

    demo = start(config, "demo", "--seeds", "2")
    assert demo.wait(600) == 0, said(config, "demo")[-3000:]
    assert "mean of 2 seeds" in said(config, "demo")
    compared = json.loads((run / "comparison.json").read_text())
    assert compared["seeds"] == [0, 1]
    assert all(len(target["values"]) == 2 for target in compared["targets"])
    assert (run / "comparison.html").stat().st_size > 10_000
    other = config.parent / "run-seed1"
    assert (other / "base/model.safetensors").read_bytes() != (run / "base/model.safetensors").read_bytes()
    assert (other / "world/pages.parquet").read_bytes() != (run / "world/pages.parquet").read_bytes()


def test_the_agent_in_hand_answers_after_the_demo(config):
    asked = start(config, "ask", "--example", "0", "--json")
    assert asked.wait(300) == 0, said(config, "ask")[-3000:]
    assert '"ending"' in said(config, "ask")
