"""What `mmsearch predict` answers at once, in a sentence, without starting anything."""

import sys

import pytest

from tests.unit.workflows.predict.asked import write
from workflows import cli
from workflows.predict.player import Ended
from workflows.predict.run import Counts


@pytest.fixture
def predict(monkeypatch, capsys, tmp_path):
    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mmsearch", "predict", *words, f"run.storage={tmp_path / 'run'}"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("mmsearch: ")
        assert said.count("\n") == 1
        return said

    return call


@pytest.fixture
def questions(tmp_path):
    return str(write(tmp_path / "questions.parquet", [{"text": "who?", "id": "a"}, {"text": "what?", "id": "a"}]))


def test_questions_and_output_must_be_named(predict, questions):
    assert "Say where the questions are" in predict("run.seed=1")
    assert f"Say where the answers go, as in `mmsearch predict {questions} --out" in predict(questions)


def test_a_missing_column_is_told_with_those_that_are_there(predict, questions, tmp_path):
    said = predict(questions, "--out", str(tmp_path / "out.parquet"))
    assert (
        "has no column question or prompt; it has text, id: name the one that is asked with --question-column" in said
    )


def test_ids_that_occur_twice_and_a_run_without_a_model_are_told(predict, questions, tmp_path):
    out = str(tmp_path / "out.parquet")
    assert "Rows 0 and 1 have the same id, 'a'" in predict(questions, "--out", out, "--question-column", "text")
    single = str(write(tmp_path / "single.parquet", [{"question": "who?"}]))
    assert "has no trained model yet" in predict(single, "--out", out)
    assert not (tmp_path / "out.parquet.parts").exists()


def test_an_episode_that_does_not_fit_the_engine_is_told(predict, questions, tmp_path):
    out = str(tmp_path / "out.parquet")
    assert "max_model_len is 512" in predict(questions, "--out", out, "engine.max_model_len=512")


def test_rows_are_counted_and_what_ends_all_is_raised():
    from cluster.errors import RunBroken, UserError

    counts = Counts(10, 2)

    def row(ended, failure="none", problem=""):
        return {"ended": ended, "failure": failure, "problem": problem, "searches": 2, "cost_usd": 0.5}

    counts.add(row(Ended.SAVED))
    counts.add(row(Ended.SAVED, "data", "no text"))
    counts.add(row(Ended.SPOILT, "infra", "the engine died"))
    assert (counts.done, counts.first_spoilt) == (4, "the engine died")
    assert "6 searches, 1.50 USD, 1 could not be asked, the first: no text" in str(counts)
    with pytest.raises(UserError, match=r"the budget is spent\. Mend that; the same command continues"):
        counts.add(row(Ended.REFUSED, problem="the budget is spent"))
    with pytest.raises(RunBroken, match="died; the same command continues"):
        counts.add(row(Ended.BROKEN, problem="the engine died"))


def test_an_unknown_setting_is_refused_before_the_questions_are_looked_for(predict):
    assert "There is no key predict.actor; did you mean actors" in predict("nowhere", "--out", "x", "predict.actor=2")
