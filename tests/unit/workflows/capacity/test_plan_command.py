"""`mmsearch plan` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from workflows import cli


def call(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mmsearch", "plan", "--gpu-gib", "80", *line.split()])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_a_plan_that_fits_ends_well_and_shows_every_part(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b --nodes 4 learner.objective.kl=none") == 0
    shown = capsys.readouterr().out
    for part in ("weights", "gradients", "optimizer", "activations, text", "logits", "KV cache", "published weights"):
        assert part in shown
    assert "It fits." in shown


def test_what_does_not_fit_is_one_sentence_with_the_missing_gib_and_what_helps(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b learner.backend.activation_checkpointing=false") == 2
    told = capsys.readouterr().err
    assert told.startswith("mmsearch: The grpo stage of this configuration does not fit: a learner rank needs ")
    assert "GiB are missing" in told
    assert "activation checkpointing" in told
    assert told.count("\n") == 1


def test_too_few_nodes_are_told_in_gpus(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b --nodes 3") == 2
    assert "4 nodes are needed and 3 are there: 8 GPUs are missing" in capsys.readouterr().err


def test_a_sampler_that_does_not_fit_is_told_what_helps(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b --gpu-gib 20") == 2
    told = capsys.readouterr().err
    assert "a sampler needs" in told
    assert "engine.tensor_parallel_size=2 (and grpo.sampler_gpus)" in told


def test_the_hosts_memory_is_judged_where_it_is_given(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b --host-gib 100") == 2
    assert "a node's host needs 247.1 GiB and has 100.0 GiB: 147.1 GiB are missing" in capsys.readouterr().err


def test_shared_memory_is_half_of_the_hosts_unless_it_is_given(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b --host-gib 260") == 2
    assert "a node's shared memory (/dev/shm) needs 139.0 GiB and has 130.0 GiB: 9.0 GiB" in capsys.readouterr().err
    assert call(monkeypatch, "--config mmsearch_r1_7b --host-gib 300 --shm-gib 200") == 0
    shown = capsys.readouterr().out
    assert "weights landed" in shown
    assert call(monkeypatch, "--config mmsearch_r1_7b --nodes 4 --cpus-per-node 16") == 2
    assert "9 nodes are needed and 4 are there" in capsys.readouterr().err


def test_json_is_whole_and_is_printed_also_when_it_does_not_fit(monkeypatch, capsys):
    assert call(monkeypatch, "--config deepmmsearch_r1_7b --json --nodes 4") == 0
    sft, grpo = json.loads(capsys.readouterr().out)
    assert (sft["stage"], grpo["stage"], sft["fits"], grpo["fits"]) == ("sft", "grpo", True, True)
    assert grpo["learner"]["total"] == sum(item["bytes"] for item in grpo["learner"]["items"])
    assert grpo["kv"]["episodes_longest"] > 0
    assert grpo["shared"]["total"] == grpo["tokens"]["publish_bytes"] * 9
    assert call(monkeypatch, "--config mmsearch_r1_7b --json --nodes 1") == 2
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["fits"], len(found["problems"])) == (False, 1)


def test_another_model_is_planned_for_on_request(monkeypatch, capsys):
    assert call(monkeypatch, "--config mmsearch_r1_7b --model Qwen2.5-VL-3B-Instruct --json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert sum(found["shape"]["parts"].values()) == 3_754_622_976


def test_a_stage_that_there_is_not_is_refused_before_anything(monkeypatch, capsys):
    assert call(monkeypatch, "--stage ppo") == 2
    assert capsys.readouterr().err == "mmsearch: --stage is 'ppo' and must be sft or grpo.\n"


def test_a_plan_loads_neither_vllm_nor_ray_nor_deepspeed():
    program = (
        "import sys; sys.argv = ['mmsearch', 'plan', '--config', 'mmsearch_r1_7b', '--gpu-gib', '80']\n"
        "from workflows.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'ray', 'vllm', 'deepspeed', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr
