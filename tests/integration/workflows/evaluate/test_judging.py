"""An evaluation's rows and a judge at a real HTTP endpoint."""

import io

import pytest
from rich.console import Console

from actors.reward.settings import JudgePrompt, JudgeSettings
from cluster.storage import Folder
from tests.integration.actors.reward.judge_server import KEY, completion, refusal, served
from tests.unit.workflows.evaluate.made_rows import QUESTION, row
from workflows.evaluate.judging import judge_arms
from workflows.evaluate.metrics import measure
from workflows.evaluate.rows import read_rows, write_rows

RIGHT, WRONG, EMPTY, GAVE_UP, SPOILT = (
    row(question_id="right", answer="Ada M. Lune", exact_match=0.0),
    row(question_id="wrong", answer="Velo", exact_match=0.0),
    row(question_id="empty", answer="", ending="out_of_turns", exact_match=0.0),
    row(question_id="gave_up", answer="unable", ending="gave_up", exact_match=0.0),
    row(question_id="spoilt", answer="Ada Lune", failure="infra"),
)
ROWS = [RIGHT, WRONG, EMPTY, GAVE_UP, SPOILT]


def says(n, body):
    return completion("[CORRECT] the same" if "Ada M. Lune" in str(body) else "[INCORRECT] another")


class Pictures:
    def put(self, data):
        raise AssertionError("nothing is put")

    def get(self, ref):
        return b"\x89PNG"


def judge(server, folder, arms, **changes):
    out = io.StringIO()
    chosen = {"model": "a-judge", "prompt": JudgePrompt.DEEPMMSEARCH_R1, **changes}
    settings = JudgeSettings(base_url=server.address, api_key_env="JUDGE_KEY", **chosen)
    questions = {one.question_id: QUESTION for rows in arms.values() for one in rows}
    judged = judge_arms(settings, arms, questions, Pictures(), Folder(folder), Console(file=out, width=200))
    return judged, out.getvalue()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_answers_are_judged_and_what_gave_none_is_wrong_unasked(tmp_path):
    with served(says) as server:
        judged, told = judge(server, tmp_path, {"sft": ROWS})
    assert [one.judged for one in judged.arms["sft"]] == [1.0, 0.0, 0.0, 0.0, None]
    measured = measure(judged.arms["sft"], 5)
    assert (measured["judged"], measured["exact_match"], measured["unjudged"]) == (0.25, 0.0, 0)
    assert len(server.requests) == 2
    assert f"questions, gold answers, answers of 2 cases are sent to {server.address} (model a-judge)" in told
    assert judged.told is not None
    assert (judged.told["cases"], judged.told["asked"], judged.told["unknown"]) == (2, 2, 0)
    assert read_rows(Folder(tmp_path), "sft.parquet") == judged.arms["sft"]


def test_a_second_evaluation_asks_nothing_and_arms_that_say_the_same_are_asked_about_once(tmp_path):
    with served(says) as server:
        first, _ = judge(server, tmp_path, {"sft": ROWS, "rl": ROWS})
        assert len(server.requests) == 2
        again, told = judge(server, tmp_path, {"sft": ROWS, "rl": ROWS})
    assert again.told is not None
    assert (again.arms, again.told["asked"], told) == (first.arms, 0, "")


def test_an_unknown_verdict_is_told_counted_and_in_no_share(tmp_path):
    with served(lambda n, body: refusal(500)) as server:
        judged, told = judge(server, tmp_path, {"sft": [RIGHT]}, retries=0)
    measured = measure(judged.arms["sft"], 5)
    assert (measured["judged"], measured["unjudged"]) == (None, 1)
    assert "1 of 1 verdicts are unknown" in told


def test_without_a_judge_nothing_is_said_of_one_not_even_by_files_of_before(tmp_path):
    with served(says) as server:
        before, _ = judge(server, tmp_path, {"sft": ROWS})
        after, told = judge(server, tmp_path, before.arms, model=None)
        assert len(server.requests) == 2
    assert (after.arms, after.told, told) == ({"sft": ROWS}, None, "")
    assert read_rows(Folder(tmp_path), "sft.parquet") == ROWS


def test_files_that_need_no_change_are_left_alone(tmp_path):
    write_rows(Folder(tmp_path), "sft.parquet", ROWS)
    written = (tmp_path / "sft.parquet").stat().st_mtime_ns
    with served(says) as server:
        judge(server, tmp_path, {"sft": ROWS}, model=None)
    assert (tmp_path / "sft.parquet").stat().st_mtime_ns == written
