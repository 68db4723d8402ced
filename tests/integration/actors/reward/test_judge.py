"""A judge at a real HTTP endpoint: what is sent, what is believed, and what an endpoint can do wrong."""

import base64
from dataclasses import replace

import pytest

from actors.agent.trajectory import ImageRef
from actors.reward.judge import FAILURES_IN_A_ROW, KEPT, Case, Judge
from actors.reward.settings import JudgePrompt, JudgeSettings
from cluster.errors import UserError
from cluster.storage import Folder
from tests.integration.actors.reward.judge_server import KEY, Reply, completion, refusal, served
from workflows.evaluate.judge_endpoint import JudgeEndpoint

YES = completion("<judge>Yes</judge><reason>the same person</reason>")
NO = completion("<judge>No</judge><reason>another person</reason>")
CASE = Case("who founded it?", ("Ada Lune", "A. Lune"), "Ada M. Lune")
PICTURE = ImageRef("a" * 64, 8, 8)
PNG = b"\x89PNG and so on"


class Pictures:
    def put(self, data):
        raise AssertionError("nothing is put")

    def get(self, ref):
        assert ref == PICTURE
        return PNG


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


async def at_once(seconds):
    """Waits between attempts take no time here."""


@pytest.fixture
async def judge_at(tmp_path):
    """Makes judges of a server, with verdicts in tmp_path, as an evaluation does."""
    models = []

    def make(server, **changes):
        settings = JudgeSettings("a-judge", server.address, "JUDGE_KEY", JudgePrompt.MMSEARCH_R1, timeout_s=20.0)
        settings = replace(settings, **changes)
        models.append(JudgeEndpoint(settings, sleep=at_once))
        return Judge(settings, models[-1], Pictures(), Folder(tmp_path))

    yield make
    for model in models:
        await model.close()


def cases(n):
    return [replace(CASE, prediction=f"answer {i}") for i in range(n)]


async def test_a_verdict_is_asked_for_greedily_with_picture_and_gold_answers_and_believed(judge_at):
    with served(lambda n, body: YES) as server:
        judge = judge_at(server)
        [verdict] = await judge.verdicts([replace(CASE, images=(PICTURE,))])
    assert (verdict.right, verdict.says) == (True, "the same person")
    [request] = server.requests
    assert (request["model"], request["temperature"]) == ("a-judge", 0)
    assert server.keys == [f"Bearer {KEY}"]
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    assert url == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert server.asked() == [
        {"question": "who founded it?", "ground_truth": "Ada Lune", "candidate_answers": ["A. Lune"],
         "response": "Ada M. Lune"}
    ]  # fmt: skip


async def test_the_text_rule_sends_no_picture_and_says_so(judge_at):
    with served(lambda n, body: completion("[INCORRECT] another person")) as server:
        judge = judge_at(server, prompt=JudgePrompt.DEEPMMSEARCH_R1)
        [verdict] = await judge.verdicts([replace(CASE, images=(PICTURE,))])
        assert "pictures" not in judge.sends
        assert "pictures" in judge_at(server).sends
    assert (verdict.right, verdict.says) == (False, "another person")
    assert [part["type"] for part in server.requests[0]["messages"][0]["content"]] == ["text"]


async def test_what_was_judged_is_not_asked_again_and_what_is_asked_differently_is(judge_at):
    with served(lambda n, body: NO) as server:
        first = await judge_at(server).verdicts([CASE, CASE])
        assert len(server.requests) == 1
        again = judge_at(server)
        assert again.missing([CASE]) == 0
        assert await again.verdicts([CASE, CASE]) == first
        assert (again.asked, len(server.requests)) == (0, 1)
        for changed in (
            replace(CASE, prediction="Ada"), replace(CASE, question="who?"), replace(CASE, answers=("Ada Lune",)),
            replace(CASE, images=(PICTURE,)),
        ):  # fmt: skip
            assert again.missing([changed]) == 1
        assert judge_at(server, model="another").missing([CASE]) == 1
        assert judge_at(server, prompt=JudgePrompt.DEEPMMSEARCH_R1).missing([CASE]) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_or_broken_endpoint_is_asked_again(judge_at, status):
    with served(lambda n, body: refusal(status) if n < 2 else YES) as server:
        [verdict] = await judge_at(server, retries=2).verdicts([CASE])
    assert (verdict.right, len(server.requests)) == (True, 3)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (refusal(500), "500"),
        (refusal(429), "429"),
        (refusal(400, "too long"), "too long"),
        (completion("I think that it is right."), "no verdict"),
        (completion("<judge>Yes</judge> or <judge>No</judge>"), "two verdicts"),
        (completion(None), "no verdict"),
        (Reply(body=b"<html>welcome</html>", headers={"content-type": "text/html"}), "no chat completion"),
        (Reply(body=b"{'broken", headers={"content-type": "application/json"}), ""),
        (Reply(body=b'{"choices": 3}', headers={"content-type": "application/json"}), "no chat completion"),
        (Reply(body=b'{"choices": []}', headers={"content-type": "application/json"}), "no chat completion"),
    ],
)
async def test_a_verdict_that_cannot_be_had_or_read_is_unknown_and_asked_for_again_next_time(judge_at, reply, why):
    with served(lambda n, body: reply if n < 2 else YES) as server:
        [verdict] = await judge_at(server, retries=0).verdicts([CASE])
        assert verdict.right is None
        assert verdict.says
        assert why in verdict.says
        [verdict] = await judge_at(server, retries=0).verdicts([CASE])
        assert verdict.right is None
        [verdict] = await judge_at(server, retries=0).verdicts([CASE])
        assert verdict.right is True


async def test_an_endpoint_that_hangs_costs_its_deadline_and_no_more(judge_at):
    with served(lambda n, body: Reply(hangs=True) if "answer 0" in str(body) else YES) as server:
        found = await judge_at(server, retries=0, timeout_s=0.3).verdicts(cases(3))
    assert [verdict.right for verdict in found] == [None, True, True]
    assert "within 0.3 s" in found[0].says


async def test_no_more_is_asked_at_a_time_than_may_be(judge_at):
    with served(lambda n, body: YES) as server:
        found = await judge_at(server, concurrency=3).verdicts(cases(30))
    assert all(verdict.right for verdict in found)
    assert 1 <= server.most_at_once <= 3


async def test_a_refused_key_ends_the_asking_and_is_told_nowhere(judge_at):
    with served(lambda n, body: refusal(401, f"Incorrect API key provided: {KEY}")) as server:
        found = await judge_at(server, concurrency=1).verdicts(cases(5))
    assert len(server.requests) == 1
    assert all(verdict.right is None for verdict in found)
    assert not any(KEY in verdict.says for verdict in found)


async def test_an_endpoint_that_quotes_the_key_does_not_get_it_told(judge_at):
    with served(lambda n, body: refusal(400, f"bad request with {KEY}")) as server:
        [verdict] = await judge_at(server).verdicts([CASE])
    assert "bad request with ***" in verdict.says


async def test_an_endpoint_that_always_fails_is_given_up_and_what_it_said_before_is_kept(judge_at, tmp_path):
    with served(lambda n, body: YES if n < 4 else refusal(500)) as server:
        judge = judge_at(server, retries=0, concurrency=1)
        found = await judge.verdicts(cases(100))
    assert len(server.requests) == 4 + FAILURES_IN_A_ROW
    assert [verdict.right for verdict in found] == [True] * 4 + [None] * 96
    assert "failures in a row" in found[-1].says
    assert len(Folder(tmp_path).read_json(KEPT)) == 4


async def test_nobody_at_the_address_is_unknown_too(judge_at):
    with served(lambda n, body: YES) as server:
        pass
    [verdict] = await judge_at(server, retries=0).verdicts([CASE])
    assert verdict.right is None
    assert "Connection error" in verdict.says


async def test_verdicts_that_were_torn_are_asked_for_again(judge_at, tmp_path):
    for torn in (b"{", b"[]", b'{"x": {"right": 1}}'):
        (tmp_path / KEPT).write_bytes(torn)
        with served(lambda n, body: YES) as server:
            await judge_at(server).verdicts([CASE])
        assert len(server.requests) == 1


def test_a_key_that_is_not_in_the_environment_is_the_persons_problem(judge_at, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with served(lambda n, body: YES) as server:
        with pytest.raises(UserError, match="JUDGE_KEY, which is not set"):
            judge_at(server)
        judge_at(server, api_key_env="")


def test_a_password_in_an_address_is_not_told():
    settings = JudgeSettings("a-judge", "https://me:secret@judge.invalid:8000/v1/", "JUDGE_KEY")
    assert JudgeEndpoint(settings).address == "https://judge.invalid:8000/v1"
