"""Arms on one real engine, their weights swapped by publishing; only the models are tiny and know nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.evaluate.document import RESULTS
from workflows.evaluate.rows import read_rows
from workflows.evaluate.run import evaluate, plan_of

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def plan(chosen):
    return plan_of(chosen)


@pytest.fixture(scope="module")
def results(plan, ray_cluster):
    return evaluate(plan)


def test_every_arm_plays_every_question_once(plan, results):
    assert list(results["arms"]) == ["rag", "sft", "rl"]
    for name in results["arms"]:
        rows = read_rows(plan.folder, f"{name}.parquet")
        assert len({row.question_id for row in rows}) == len(rows) == 5
        assert all(row.counts and row.turns >= 1 for row in rows)
    assert (results["questions"], results["dropped"]) == (5, 1)
    assert plan.folder.read_json(RESULTS)["arms"]["rl"]["overall"]["episodes"] == 5


def test_an_arm_runs_under_its_own_weights_without_another_engine(plan, results):
    rag, sft, rl = (read_rows(plan.folder, f"{name}.parquet") for name in results["arms"])
    assert {row.version for row in rag} == {row.version for row in sft} == {0}
    assert {row.version for row in rl} == {2}
    assert [row.text for row in sft] != [row.text for row in rl]


def test_the_baseline_really_searches_twice_in_the_real_world(plan, results):
    for row in read_rows(plan.folder, "rag.parquet"):
        assert (row.image_searches, row.text_searches, row.crops) == (1, 1, 0)
    overall = results["arms"]["rag"]["overall"]
    assert overall["search_ratio"] == 1.0
    assert overall["search_ratio_allowed"] == pytest.approx(2 / 5)
    assert overall["search_success"] > 0


def test_every_score_has_its_interval_and_every_breakdown_is_there(plan, results):
    for arm in plan.folder.read_json(RESULTS)["arms"].values():
        low, high = arm["intervals"]["exact_match"]
        assert low <= arm["overall"]["exact_match"] <= high
        assert arm["kinds"].keys() == arm["kind_intervals"].keys()
        assert arm["labels"].keys() == arm["label_intervals"].keys()
        assert sum(arm["behaviour"].values()) == pytest.approx(1)


def test_what_was_played_is_not_played_again_and_other_weights_are(plan, results, capsys):
    assert evaluate(plan)["arms"] == results["arms"]
    assert capsys.readouterr().err.count("was played already") == 3
    other = replace(plan, evaluate=dataclasses.replace(plan.evaluate, max_tokens=9))
    assert other.identity("rl") != plan.identity("rl")


def test_a_missing_model_is_said_with_the_command_that_makes_it(plan, tmp_path):
    nowhere = replace(plan, models={**plan.models, "rl": str(tmp_path)})
    with pytest.raises(UserError, match=r"Arm rl needs the model at .*run `mmsearch grpo` first"):
        evaluate(nowhere)
    with pytest.raises(UserError, match="there are no questions"):
        evaluate(replace(plan, questions=Folder(tmp_path)))


def test_an_episode_that_does_not_fit_the_engine_is_said_before_anything_starts(plan):
    small = replace(plan, engine=dataclasses.replace(plan.engine, max_model_len=100))
    with pytest.raises(UserError, match="max_model_len is 100"):
        evaluate(small)


def test_an_arm_that_the_protocol_cannot_play_is_said_before_anything_starts(plan):
    crops = dataclasses.replace(plan.evaluate, arms=["rag_crop"])
    with pytest.raises(UserError, match=r"rag_crop needs searches for parts .* agent.preset=mmsearch_r1"):
        evaluate(replace(plan, preset="mmsearch_r1", evaluate=crops))
