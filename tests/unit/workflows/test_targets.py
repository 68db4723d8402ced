"""Targets against rows whose shares are known."""

from dataclasses import replace

import pytest

from tests.unit.workflows.evaluate.made_rows import row
from workflows.targets import TARGETS, Target, findings


def said(told):
    return {finding.target.says: finding for finding in told}


@pytest.fixture
def seed():
    """RL is right in 9 of 10, SFT in 7, RAG in 5; RL searches on 1 of 5 search-free ones and all others."""

    def rows(arm, right, searched):
        return [
            row(
                arm=arm,
                question_id=f"q{i}",
                label="free" if i < 5 else "required",
                tags=(),
                exact_match=float(i < right),
                image_searches=int(i in searched),
                text_searches=int(arm == "rag"),
            )
            for i in range(10)
        ]

    everything = range(10)
    return {
        "sft": rows("sft", 7, everything),
        "rl": rows("rl", 9, (0, 5, 6, 7, 8, 9)),
        "rag": rows("rag", 5, everything),
        "no_penalty": rows("no_penalty", 9, everything),
    }


def test_every_target_is_told_in_the_papers_own_terms(seed):
    told = said(findings([seed], max_calls=5))
    assert told["RL: exact match"].mean == pytest.approx(0.9)
    assert told["RL over SFT"].mean == pytest.approx(0.2)
    assert told["RL over the best RAG arm"].mean == pytest.approx(0.4)
    assert told["fewer searches than RAG"].mean == pytest.approx(1 - 0.6 / 2)
    assert told["RL searches on search-free questions"].mean == pytest.approx(0.2)
    assert not told["RL searches on search-free questions"].reached
    assert told["RL searches on search-required ones"].reached
    assert told["without penalty: times the searches on search-free"].mean == pytest.approx(5.0)


def test_rl_is_held_against_the_best_of_the_rag_arms_and_not_the_worst(seed):
    told = said(findings([{**seed, "rag_rl": seed["sft"]}], max_calls=5))
    assert told["RL over the best RAG arm"].mean == pytest.approx(0.2)


def test_what_was_not_played_is_not_told(seed):
    assert "with crop over without, on crowded scenes" not in said(findings([seed], max_calls=5))
    assert not findings([{}], max_calls=5)


def test_several_seeds_are_told_by_their_mean_and_only_where_all_have_it(seed):
    worse = {**seed, "rl": seed["sft"]}
    told = said(findings([seed, worse], max_calls=5))
    assert told["RL over SFT"].values == pytest.approx((0.2, 0.0))
    assert told["RL over SFT"].mean == pytest.approx(0.1)
    assert "RL over the best RAG arm" not in said(findings([seed, {"rl": seed["rl"]}], max_calls=5))


def test_a_bound_from_above_is_reached_from_below():
    target = Target("x", 0.5, True, lambda arms, calls: 0.4)
    assert findings([{}], 5, [target])[0].reached
    assert not findings([{}], 5, [replace(target, at_most=False)])[0].reached


def test_no_two_targets_say_the_same():
    assert len({target.says for target in TARGETS}) == len(TARGETS)
