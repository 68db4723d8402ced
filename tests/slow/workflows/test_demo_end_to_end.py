"""`mmsearch demo` as a person runs it, in miniature: every stage real, stopped in the middle, continued, and reused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.slow.commands import Command
from workflows.stage import Due, StageBook, fingerprints

pytestmark = pytest.mark.timeout(1500)

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


def start(config: Path, *words: str) -> Command:
    return Command(config.parent / f"{words[0]}.log", *words, "--config", str(config))


def due(config: Path) -> dict[str, Due]:
    from workflows import demo, settings

    chosen = settings.load(config)
    marks, book = fingerprints(demo.STAGES, chosen), StageBook(chosen.run.folder)
    return {stage.name: book.due(stage, marks[stage.name]) for stage in demo.STAGES}


def test_a_demo_that_is_stopped_continues_and_then_has_nothing_left_to_do(config):
    with start(config, "demo") as demo:
        demo.until((config.parent / "run/stages/sft.json").exists, 900)
        demo.interrupt()
        demo.ends_with(130, 300)
    assert (due(config)["pretrain"], due(config)["dataset"], due(config)["grpo"]) == (Due.REUSED, Due.REUSED, Due.NEW)

    with start(config, "demo") as demo:
        told = demo.ends_with(0, 900)
    assert "1/5 pretrain: reused" in told
    assert "2/5 dataset: reused" in told
    assert set(due(config).values()) == {Due.REUSED}
    for words in ("held-out questions", "time per stage", "peak memory", "mmsearch ask --example 0"):
        assert words in told
    facts = json.loads((config.parent / "run/demo.json").read_text())
    assert facts["reused"] == ["dataset", "pretrain"]
    assert 0 < facts["peak_memory_bytes"] < 12 << 30

    with start(config, "demo") as demo:
        told = demo.ends_with(0, 120)
    assert "every stage is done already" in told
    assert "match" in told  # the table is shown again
    assert (config.parent / "run/report.html").exists()


def test_a_second_seed_and_the_ablations_go_on_from_what_is_there_and_are_compared(config):
    with start(config, "demo", "--ablations", "demo.ablations=[no_crop]") as demo:  # each takes minutes of starts
        told = demo.ends_with(0, 900)
    assert "4/7 grpo: reused" in told
    assert "what was to be reached" in told
    run = config.parent / "run"
    compared = json.loads((run / "comparison.json").read_text())
    assert set(compared["arms"]) == {"rag", "sft", "rl", "no_crop"}
    assert {target["says"] for target in compared["targets"]} >= {"RL over SFT", "fewer searches than RAG"}

    with start(config, "demo", "--seeds", "2") as demo:
        told = demo.ends_with(0, 900)
    assert "mean of 2 seeds" in told
    compared = json.loads((run / "comparison.json").read_text())
    assert compared["seeds"] == [0, 1]
    assert all(len(target["values"]) == 2 for target in compared["targets"])
    assert (run / "comparison.html").stat().st_size > 10_000
    other = config.parent / "run-seed1"
    assert (other / "base/model.safetensors").read_bytes() != (run / "base/model.safetensors").read_bytes()
    assert (other / "world/pages.parquet").read_bytes() != (run / "world/pages.parquet").read_bytes()


def test_the_agent_in_hand_answers_after_the_demo(config):
    with start(config, "ask", "--example", "0", "--json") as asked:
        told = asked.ends_with(0, 300)
    assert '"ending"' in told
