"""The learner's settings through the configuration loader, and what the loader refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from actors.learner.settings import LearnerSettings, LoraSettings
from cluster import config
from cluster.errors import UserError


def test_words_reach_the_innermost_settings():
    words = ["objective.surrogate=cispo", "backend.optimizer.lr=1e-4", "objective.correction.level=none"]
    got = config.load(LearnerSettings, None, words)
    assert got.objective.surrogate == "cispo"
    assert got.backend.optimizer.lr == 1e-4
    assert got.objective.correction.level == "none"


def test_lora_is_off_until_one_of_its_words_is_given_and_null_turns_it_off():
    assert config.load(LearnerSettings, None).lora is None
    got = config.load(LearnerSettings, None, ["lora.rank=4", "lora.targets=[q_proj]", "freeze=[vision,projector]"])
    assert got.lora == LoraSettings(rank=4, targets=["q_proj"])
    assert got.freeze == ["vision", "projector"]
    assert config.load(LearnerSettings, None, ["lora.rank=4", "lora=null"]).lora is None


def test_muon_is_refused_with_lora():
    words = ["backend.kind=plain", "backend.optimizer.kind=muon"]
    assert config.load(LearnerSettings, None, words).lora is None
    with pytest.raises(UserError, match="lora needs adamw"):
        config.load(LearnerSettings, None, [*words, "lora.rank=4"])


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("objective.clip_low=1.5", "clip_low"),
        ("objective.surrogate=trpo", "surrogate"),
        ("objective.proximal=behaviour", r"correction\.level"),
        ("objective.correction.cap=0.5", "cap"),
        ("backend.zero_stage=4", "zero_stage"),
        ("backend.optimizer.schedule=cosine", "total_steps"),
        ("objective.temperature=0", "temperature"),
        ("micro_batch_tokens=0", "micro_batch_tokens"),
        ("freeze=[tower]", "one of vision, projector"),
        ("lora.rank=0", r"lora\.rank"),
        ("lora.dropout=1", r"lora\.dropout"),
        ("mask=[wrong]", "one of over_long, fatal_tool"),
        ("learning_rate=1", "learning_rate"),
    ],
)
def test_impossible_settings_are_refused_with_their_name(word, complaint):
    with pytest.raises(UserError, match=complaint):
        config.load(LearnerSettings, None, [word])


def test_importing_the_settings_pulls_in_nothing_heavy():
    code = "import sys, actors.learner.settings; print({'torch', 'ray', 'deepspeed', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
