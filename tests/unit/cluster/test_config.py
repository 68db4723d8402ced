"""Configuration: what loads, and what each kind of mistake is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cluster.config import dump, load
from cluster.errors import UserError


class Loss(StrEnum):
    GRPO = "grpo"
    GSPO = "gspo"


@dataclass(frozen=True)
class Provider:
    url: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Learner:
    lr: float = field(default=1e-4, metadata={"gt": 0})
    steps: int = field(default=10, metadata={"ge": 1, "le": 1000})
    precision: Literal["bf16", "fp32"] = "bf16"
    loss: Loss = Loss.GRPO
    betas: tuple[float, ...] = (0.9, 0.95)
    warmup: int | None = None

    def check(self) -> None:
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) must not exceed steps ({self.steps})")


@dataclass(frozen=True)
class Root:
    name: str = "run"
    learner: Learner = field(default_factory=Learner)
    judge: Provider | None = None
    providers: dict[str, Provider] = field(default_factory=dict)
    chain: list[str] = field(default_factory=list)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(Root, None, words)
    return caught.value.message


def test_nothing_given_gives_the_defaults():
    assert load(Root, None) == Root()


def test_file_and_words_become_frozen_dataclasses(tmp_path):
    path = write(tmp_path, "a.yaml", "learner: {lr: 1e-3, betas: [0.8, 0.9], loss: GSPO}\njudge: {url: here}\n")
    settings = load(Root, path, ["learner.steps=20", "chain=[a,b]", "providers.serp.url=u"])
    assert settings.learner == Learner(lr=1e-3, steps=20, betas=(0.8, 0.9), loss=Loss.GSPO)
    assert isinstance(settings.learner.betas, tuple)
    assert settings.judge == Provider(url="here")
    assert settings.chain == ["a", "b"]
    assert settings.providers == {"serp": Provider(url="u")}


def test_later_words_win_over_earlier_ones_and_over_the_file(tmp_path):
    path = write(tmp_path, "a.yaml", "learner: {steps: 5}")
    assert load(Root, path, ["learner.steps=6", "learner.steps=7"]).learner.steps == 7


def test_extends_applies_the_parents_first(tmp_path):
    write(tmp_path, "base.yaml", "name: base\nlearner: {steps: 3, lr: 0.5}")
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub", "child.yaml", "extends: ../base.yaml\nlearner: {steps: 4}")
    settings = load(Root, path)
    assert (settings.name, settings.learner.steps, settings.learner.lr) == ("base", 4, 0.5)


def test_a_circle_of_extends_is_refused(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml")
    path = write(tmp_path, "b.yaml", "extends: a.yaml")
    with pytest.raises(UserError, match="extends itself"):
        load(Root, path)


def test_a_shipped_configuration_is_found_by_name_and_others_are_listed(tmp_path):
    write(tmp_path, "small.yaml", "name: small")
    assert load(Root, "small", shipped=tmp_path).name == "small"
    with pytest.raises(UserError, match=r"no configuration file big; shipped with the package: small"):
        load(Root, "big", shipped=tmp_path)


def test_an_unknown_key_is_told_its_path_and_its_neighbours():
    message = refusal("learner.stpes=3")
    assert "learner.stpes" in message
    assert "did you mean steps?" in message
    assert "precision" in message


def test_unknown_keys_inside_dictionaries_of_sections_are_told():
    assert "providers.serp.link" in refusal("providers.serp.link=u")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("learner.steps=many", "learner.steps is 'many' and must be a whole number"),
        ("learner.steps=1.5", "must be a whole number"),
        ("learner.precision=fp8", "one of bf16, fp32"),
        ("learner.loss=PPO", "one of GRPO, GSPO"),
        ("learner.betas=[a]", "a list of a number"),
        ("learner=3", "learner is 3 and must be a section with the keys lr, steps"),
        ("learner.steps=0", "learner.steps is 0 and must be at least 1"),
        ("learner.steps=1001", "at most 1000"),
        ("learner.lr=0", "learner.lr is 0.0 and must be more than 0"),
        ("learner.lr=inf", "learner.lr is inf and must be a finite number"),
        ("learner.lr=.nan", "learner.lr is nan and must be a finite number"),
        ("learner.steps=null", "learner.steps is null and must be a whole number"),
        ("chain.0=a", "chain is {'0': 'a'} and must be a list of text, given whole"),
        ("learner.steps", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("learner.warmup=11", r"learner: warmup (11) must not exceed steps (10)"),
    ],
)
def test_a_wrong_value_is_told_what_is_accepted(word, says):
    assert says in refusal(word)


@pytest.mark.parametrize("word", ["name=${nowhere}", "name=${name}", "learner=${nowhere}", "name=${no_resolver:1}"])
def test_a_reference_that_leads_nowhere_is_one_sentence(word):
    message = refusal(word)
    assert "cannot be resolved" in message
    assert "\n" not in message


def test_what_a_resolver_says_to_the_person_is_said_as_it_is():
    def refuses() -> str:
        raise UserError("That folder cannot be used.")

    OmegaConf.register_resolver("refuses", refuses, replace=True)
    assert refusal("name=${refuses:}") == "That folder cannot be used."


@pytest.mark.parametrize("extends", ["", "3", "[1]", "{a: 1}", "['']"])
def test_extends_that_names_no_file_is_told_what_it_takes(tmp_path, extends):
    path = write(tmp_path, "bad.yaml", f"extends: {extends}\n")
    with pytest.raises(UserError, match="must be a file's name or a list of them"):
        load(Root, path)


def test_an_empty_file_name_is_not_the_default():
    with pytest.raises(UserError, match="name is empty"):
        load(Root, "")


@pytest.mark.parametrize("text", ["a: [", "- 1", "name: a\nname: b", "name: ${oops"])
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path, text):
    path = write(tmp_path, "bad.yaml", text)
    with pytest.raises(UserError, match=r"bad\.yaml") as caught:
        load(Root, path)
    assert "\n" not in caught.value.message


def test_the_dump_reads_back_as_the_same_settings(tmp_path):
    settings = load(Root, None, ["learner.lr=0.25", "judge.url=x", "providers.a.weight=2"])
    assert load(Root, write(tmp_path, "resolved.yaml", dump(settings))) == settings


@given(st.integers(min_value=1, max_value=1000), st.floats(min_value=1e-12, max_value=1e6))
def test_every_number_in_range_survives(steps, lr):
    settings = load(Root, None, [f"learner.steps={steps}", f"learner.lr={lr!r}"])
    assert (settings.learner.steps, settings.learner.lr) == (steps, lr)
