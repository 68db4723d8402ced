"""The bench of the service as a whole: what it asks, in which order it hurts, and what it prints."""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest
from rich.console import Console

from actors.agent.trajectory import Question
from cluster.errors import RunBroken, UserError
from tests.unit.workflows.loopback_service import MODEL, Reply, episode, error_body, service
from workflows import cli
from workflows.bench import serve, serve_parts
from workflows.bench.serve_form import ELSEWHERE, PARTS, ServeForm
from workflows.bench.serve_load import arrivals, chat_body
from workflows.bench.serve_parts import Asking
from workflows.settings import load

SLOW = Reply(episode(), between_s=0.005)  # fifty milliseconds: so that a crowd asks no more than a test can bear
BRIEF = ServeForm(ELSEWHERE, 0.01, 4, "", 1, 3, 0.3, 2, 0.1)


def asking(url, form=BRIEF):
    def bodies(model, stream, seconds):
        return [chat_body(model, "who?", [], stream=stream, seconds=seconds)] * form.questions

    return Asking(url, "", form, bodies, bodies, bodies)


class FakeService:
    """What the parts see of a service. `dies_s`: seconds until it is whole again."""

    def __init__(self, agents=1, back_after=2):
        self.there = {pid: "RUNNING" for pid in range(100, 100 + agents)}
        self.updates, self.killed, self._looks, self._back_after = [], [], 0, back_after

    def agents(self):
        return dict(self.there)

    def update(self, checkpoint):
        self.updates.append(checkpoint)
        return len(self.updates) + 1

    def kill(self, pid):
        self.killed.append(pid)
        self._looks = 0

    def whole(self, agents, without):
        assert without == (self.killed[-1],)
        self._looks += 1
        if self._looks >= self._back_after:
            self.there = {pid + 1000: state for pid, state in self.there.items()}
        return self._looks >= self._back_after

    def most_episodes(self):
        return 7

    def memory_mib(self):
        return {"agent": 100.0}


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(serve_parts, "SETTLE_S", 0.1)
    monkeypatch.setattr(serve_parts, "LOOK_S", 0.01)


# --- the parts --------------------------------------------------------------------------------------------------------


async def test_weights_are_swapped_in_turn_while_clients_ask(brief):
    fake = FakeService()
    with service(Reply(episode(version=3))) as server:
        told = await serve_parts.swap(asking(server.url), fake, ["sft", "rl"])
    assert fake.updates == ["sft", "rl"]
    assert set(told["versions"]) == {"3"}
    assert (told["problems"], len(told["command_s"])) == ([], 2)


async def test_each_death_is_of_an_agent_that_is_there_and_is_waited_for(brief):
    fake = FakeService(2)
    with service(SLOW) as server:
        told = await serve_parts.kill(asking(server.url), fake, 2)
    assert fake.killed == [100, 1100]
    assert (told["replicas"], told["problems"], len(told["whole_s"])) == (2, [], 2)
    assert told["most_on_one"] == [7, 7]


async def test_after_an_agent_that_does_not_come_back_none_is_killed(brief, monkeypatch):
    monkeypatch.setattr(serve_parts, "DEATH_S", 0.3)
    fake = FakeService(1, back_after=10**6)
    with service(SLOW) as server:
        told = await serve_parts.kill(asking(server.url), fake, 1)
    assert fake.killed == [100]
    assert (told["whole_s"], told["problems"]) == ([None], ["the service did not become whole again"])


async def test_agents_that_are_not_there_cannot_be_killed(brief):
    with service(SLOW) as server, pytest.raises(RuntimeError, match="there are 1 agents, not 2"):
        await asyncio.wait_for(serve_parts.kill(asking(server.url), FakeService(1), 2), 20)


async def test_twice_the_capacity_is_offered_and_memory_is_watched(brief):
    with service(SLOW) as server:
        told = await serve_parts.overload(asking(server.url), FakeService())
    assert told["offered_per_s"] == 2 * told["levels"][str(told["capacity_clients"])]
    assert told["requests"] == len(list(arrivals(told["offered_per_s"], 60 * BRIEF.minutes)))
    assert set(told["levels"]) == {"1", "2", "4", "8"}
    assert told["memory_mib"] == {"agent": 100.0}
    assert told["problems"] == []


async def test_agents_that_were_replaced_under_load_are_a_problem(brief):
    fake = FakeService()
    states = iter([{1: "RUNNING"}, {2: "RUNNING"}])
    fake.agents = lambda: next(states)
    with service(SLOW) as server:
        told = await serve_parts.overload(asking(server.url), fake)
    assert any("were replaced under load" in problem for problem in told["problems"])


async def test_a_pass_of_the_service_is_the_questions_alone_and_then_a_crowd():
    plain = {"choices": [{"finish_reason": "stop", "weights_version": 1}], "usage": {"completion_tokens": 7}}
    with service(Reply([json.dumps(plain).encode()])) as server:
        one = await serve_parts.service_pass(asking(server.url))
        assert {body["model"] for _, _, body in server.seen if body} == {MODEL}
    assert (len(one.seconds), one.sampled) == (3, (7, 7, 7))
    assert one.per_s > 0


async def test_a_pass_in_which_a_question_is_lost_measures_nothing():
    dead = Reply([error_body("dead")], 503)
    with service(dead) as server, pytest.raises(RuntimeError, match="were failed: 503: dead"):
        await serve_parts.service_pass(asking(server.url))


# --- the command ------------------------------------------------------------------------------------------------------


class NoStore:
    def get(self, ref):
        raise AssertionError("no question has a picture")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The command against a service elsewhere; returns what is written down."""
    some = tuple(Question(str(i), f"who is {i}?", ()) for i in range(3))
    monkeypatch.setattr(serve, "_questions", lambda *_: serve.Asked(some, some, some, NoStore()))

    def called(reply):
        settings = load("miniature", [f"run.storage={tmp_path}"])
        with service(reply) as server:
            form = ServeForm(ELSEWHERE, 0.01, 4, server.url, 1, 3, 0.3, 2, 0.1)
            try:
                serve.run(settings, form, [], as_json=True)
            finally:
                told = json.loads((tmp_path / serve.FOLDER / "results.json").read_text())
        return told

    return called


def test_a_service_elsewhere_is_asked_what_can_be_asked_there(remote, capsys):
    told = remote(SLOW)
    assert set(told["parts"]) == {"steps", "overload"}
    assert json.loads(capsys.readouterr().out) == told
    assert not [one for one in told["parts"]["overload"]["verdicts"] if "memory" in one["says"]]


def test_what_must_not_happen_ends_the_command_with_its_first_problem(remote):
    with pytest.raises(RunBroken, match=r"steps: \d+ requests failed, most of them: the answer broke off"):
        remote(Reply(episode()[:-2]))


def test_a_bench_that_cannot_go_on_says_so_in_its_results(remote, tmp_path):
    with pytest.raises(RunBroken, match="the bench: ended: no question was answered"):
        remote(Reply([error_body("full")], 429, {"Retry-After": "1"}))
    told = json.loads((tmp_path / serve.FOLDER / "results.json").read_text())
    assert told["parts"]["the bench"]["problems"]


def test_every_part_is_printed_with_its_verdicts_and_what_stands_behind_them():
    from workflows.bench import serve_figures as figures
    from workflows.bench.serve_figures import Death, SidePass, Swap

    one = SidePass((0.11,), (5,), 80.0)
    parts = {
        "overhead": figures.overhead([one], [SidePass((0.1,), (5,), 100.0)]),
        "steps": figures.steps([], []),
        "overload": {"levels": {8: 10.0}, "offered_per_s": 20.0}
        | figures.overload([], None, None, deadline_s=1.0, unsent=2),
        "swap": figures.swaps([], [Swap(0.0, 1.0, 2)]),
        "kill": figures.deaths([], [Death(0.0, 50.0)], 2),
    }
    said = io.StringIO()
    document = {"form": {"clients": 32}, "cpus": 2, "parts": parts}
    serve.show(json.loads(json.dumps(document)), Console(file=said, width=160))
    for words in (
        "added to a request, median", "10.0 ms", "20.0%", "not measured", "missed", "8: 10.0; offered 20.0",
        "PROBLEM: 2 requests were not sent", "longest time without an answer 50.0 s", "did the same work",
    ):  # fmt: skip
        assert words in said.getvalue()


@pytest.mark.parametrize(("value", "unit", "said"), [
    (None, "ms", "not measured"), (1.25, "s", "1.2 s"), (0.05, "share", "5.0%"), (1.5, "x", "1.50 x"), (3.0, "", "3"),
])  # fmt: skip
def test_figures_have_their_units(value, unit, said):
    assert serve.words(value, unit) == said


def test_a_quick_form_is_brief_and_one_elsewhere_has_only_what_can_be_asked_there():
    quick = ServeForm.asked(True, None, 32, (), "")
    assert (quick.parts, quick.minutes, quick.times) == (PARTS, 1.0, 1)
    assert ServeForm.asked(False, None, 32, (), "").minutes == 10.0
    assert ServeForm.asked(True, 3.0, 8, ("kill", "steps"), "").parts == ("steps", "kill")
    assert ServeForm.asked(False, None, 32, (), "http://a").parts == ELSEWHERE


def test_parts_that_there_are_not_are_refused():
    with pytest.raises(UserError, match="has no part speed; it has overhead, steps"):
        ServeForm.asked(False, None, 32, ("speed",), "")
    with pytest.raises(UserError, match="leave out --url"):
        ServeForm.asked(False, None, 32, ("kill",), "http://a")


def test_a_run_without_questions_names_the_command_that_makes_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["mmsearch", "bench", "serve", "--quick", f"run.storage={tmp_path}"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "there are no questions at" in capsys.readouterr().err
