"""`mmsearch ask --url`, as it is typed, against a service on loopback that writes the real one's bytes."""

from __future__ import annotations

import base64
import json
import socket
import sys

import pytest
from PIL import Image
from rich.console import Console

from actors.agent.trajectory import Question
from cluster.errors import RunBroken, UserError
from tests.unit.workflows.loopback_service import (
    MODEL,
    RESULT,
    SEARCH,
    Reply,
    choice,
    episode,
    error_body,
    service,
    writer,
)
from workflows import cli, remote_ask
from workflows.remote_ask import KEY_ENV, service_at
from workflows.steps import StepLines


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path):
    """The command; (exit code, standard output, standard error)."""
    monkeypatch.delenv(KEY_ENV, raising=False)

    def call(url: str, *words: str) -> tuple[int, str, str]:
        line = ["mmsearch", "ask", "--url", url, *words, f"run.storage={tmp_path / 'run'}"]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return call


def refused(ask, reply: Reply, *words: str) -> tuple[int, str]:
    with service(reply) as server:
        code, _, said = ask(server.url, "who?", *words)
    assert said.startswith("mmsearch: ")
    assert said.count("\n") == 1, said
    return code, said


# --- what is asked and printed ----------------------------------------------------------------------------------------


def test_steps_and_the_answer_are_printed_as_of_an_episode_here(ask):
    with service(Reply(episode())) as server:
        code, said, _ = ask(server.url, "who?")
    assert code == 0
    told = [line.rstrip() for line in said.splitlines()]
    assert told[:6] == [
        "1. a red star is unknown.",
        '   > search image: "red star"',
        "     cut out: pixels 1, 2 to 3, 4",
        "     [1] Velo: the founder of Velo is Ada Lune.",
        "     ok, web, 0.25 s",
        "2. it is in [1].",
    ]
    assert told[6:8] == ["answer: Ada Lune", "  [1] Velo: the founder of Velo is Ada Lune.  http://web/velo"]
    assert told[8].startswith("1 searches, 30 tokens, ")


def test_the_document_is_that_of_an_episode_here_as_far_as_known(ask):
    with service(Reply(episode())) as server:
        code, out, _ = ask(server.url, "who?", "--json")
        told = json.loads(out)
    assert code == 0
    assert (told["answer"], told["ending"], told["failure"], told["problem"]) == ("Ada Lune", "answered", "none", "")
    assert [item["number"] for item in told["evidence"]] == [1]
    first, second = told["steps"]
    assert (first["turn"], first["reason"]) == (1, "a red star is unknown.")
    assert first["action"] == {"tool": "image_search", "expression": "red star", "box": None, "image": 1}
    assert first["result"]["evidence"][0]["title"] == "Velo"
    assert second["action"] == {"answer": "Ada Lune", "citations": [1]}
    assert (told["searches"], told["sampled_tokens"], told["cost_usd"], told["weights_version"]) == (1, 30, 0.001, 3)
    assert told["model"] == f"{MODEL} at {server.url}"


def test_the_request_holds_the_pictures_as_they_are_and_the_question(ask, tmp_path):
    picture = tmp_path / "a.jpg"
    Image.new("RGB", (32, 32), "red").save(picture)
    with service(Reply(episode())) as server:
        ask(server.url + "/v1/", "who?", "--image", str(picture))
        [(_, _, _), (_, _, asked)] = server.seen
    image, text = asked["messages"][0]["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(data) == picture.read_bytes()
    assert text == {"type": "text", "text": "who?"}
    assert (asked["model"], asked["stream"], asked["temperature"]) == (MODEL, True, 0.0)


def test_the_key_of_the_environment_goes_with_every_request_and_into_no_output(ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", "mms-secret")
    with service(Reply(episode())) as server:
        code, out, said = ask(server.url, "who?", "--key-env", "MY_KEY", "--json")
        sent = {headers["Authorization"] for _, headers, _ in server.seen}
    assert (code, sent) == (0, {"Bearer mms-secret"})
    assert "mms-secret" not in out + said
    assert "mms-secret" not in repr(service_at("http://a", "MY_KEY"))


def test_a_proxy_of_the_environment_is_not_asked_for_a_service_of_this_machine(ask, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with service(Reply(episode())) as server:
        assert ask(server.url, "who?")[0] == 0


# --- episodes that go other ways --------------------------------------------------------------------------------------


def told_of(ask, pieces: list[bytes]) -> tuple[dict, str]:
    with service(Reply(pieces)) as server:
        _, shown, _ = ask(server.url, "who?")
        _, out, _ = ask(server.url, "who?", "--json")
    return json.loads(out), shown


def test_a_turn_that_could_do_nothing_is_told_with_its_problem(ask):
    chunks = writer()
    pieces = [
        chunks.begin(1),
        chunks.step(0, {"type": "turn", "number": 1}),
        chunks.step(0, {"type": "problem", "turn": 1, "message": "no action at the end of the turn"}),
        chunks.step(0, {"type": "turn", "number": 2}),
        chunks.finish(0, choice("There is no answer within 2 turns.", finish_reason="max_turns")),
        chunks.end(),
    ]
    told, shown = told_of(ask, pieces)
    assert shown.splitlines()[:3] == [
        "1. (no reason given)", "   ! no action at the end of the turn", "2. (no reason given)",
    ]  # fmt: skip
    assert told["steps"][0]["problem"] == "no action at the end of the turn"
    assert told["steps"][0]["action"] is None


def test_a_search_that_was_not_well_formed_is_told_with_both(ask):
    chunks = writer()
    problem = {"type": "problem", "turn": 1, "message": "two reasons"}
    pieces = [
        chunks.begin(1),
        chunks.step(0, {"type": "turn", "number": 1}),
        *(chunks.step(0, step) for step in (problem, SEARCH, RESULT)),
        chunks.finish(0, choice("", finish_reason="max_turns")),
        chunks.end(),
    ]
    told, shown = told_of(ask, pieces)
    assert shown.splitlines()[1:3] == ["   ! two reasons", '   > search image: "red star"']
    assert len(told["steps"]) == 1


@pytest.mark.parametrize(
    ("finish_reason", "ending", "failure"),
    [
        ("length", "out_of_tokens", "policy"),
        ("max_turns", "out_of_turns", "policy"),
        ("max_seconds", "max_seconds", "none"),
    ],
)
def test_an_episode_without_an_answer_says_why_and_is_no_failure_of_the_command(ask, finish_reason, ending, failure):
    told, shown = told_of(ask, episode("There is none.\nWhat was found: x", finish_reason=finish_reason))
    assert (told["answer"], told["ending"], told["failure"]) == (None, ending, failure)
    assert "no answer: There is none. What was found: x" in shown


def test_an_answer_after_the_last_search_that_was_allowed_is_an_answer(ask):
    told, shown = told_of(ask, episode(finish_reason="max_tool_calls"))
    assert (told["answer"], told["ending"], told["finish_reason"]) == ("Ada Lune", "answered", "max_tool_calls")
    assert "answer: Ada Lune" in shown


def test_what_is_cited_twice_is_evidence_once_and_a_citation_of_nothing_is_none(ask):
    at = [(4, 7), (8, 11), (0, 3), (90, 93)]
    citations = [{"start_index": start, "end_index": end, "title": "", "url": ""} for start, end in at]
    annotations = tuple({"type": "url_citation", "url_citation": one} for one in citations)
    told, _ = told_of(ask, episode("Ada [1] [1]", annotations=annotations))
    assert [item["number"] for item in told["evidence"]] == [1]
    assert told["answer"] == "Ada"


def test_giving_up_is_told_as_such(ask):
    told, shown = told_of(ask, episode("Unable to answer due to lack of relevant information.", tool_calls=0))
    assert (told["answer"], told["ending"]) == (None, "gave_up")
    assert "gave up" in shown


def test_a_notice_comes_after_the_turn_that_it_is_about(ask):
    chunks = writer()
    pieces = [
        chunks.begin(1),
        chunks.step(0, {"type": "turn", "number": 1}),
        chunks.text(0, "reasoning_content", "known."),
        chunks.step(0, {"type": "notice", "reason": "search_unavailable", "message": "Every search failed."}),
        chunks.text(0, "content", "Ada"),
        chunks.finish(0, choice("Ada", search_unavailable=True)),
        chunks.end(),
    ]
    told, shown = told_of(ask, pieces)
    assert shown.splitlines()[:2] == ["1. known.", "   ! Every search failed."]
    assert told["search_unavailable"] is True


def test_what_a_service_writes_can_neither_paint_nor_move_the_cursor(ask):
    _, shown = told_of(ask, episode("\x1b[2J[bold]Ada"))
    assert "\x1b" not in shown
    assert "[bold]Ada" in shown


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_where_nobody_answers_the_command_that_starts_a_service_is_named(ask):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        code, _, said = ask(f"http://127.0.0.1:{nobody.getsockname()[1]}", "who?")
    assert code == 2
    assert "start the service with `mmsearch serve`" in said
    assert said.count("\n") == 1


def test_a_key_that_is_wanted_or_not_known_is_the_persons_to_mend(ask, monkeypatch):
    reply = Reply([error_body("no", "invalid_api_key")], 401)
    code, said = refused(ask, reply)
    assert (code, f"put yours into ${KEY_ENV}" in said) == (2, True)
    monkeypatch.setenv(KEY_ENV, "mms-wrong")
    code, said = refused(ask, reply)
    assert (code, f"does not know the key in ${KEY_ENV}" in said, "mms-wrong" in said) == (2, True, False)


def test_a_service_that_is_full_says_how_long(ask):
    code, said = refused(
        ask, Reply([error_body("The service is full.", "rate_limit_exceeded")], 429, {"Retry-After": "7"})
    )
    assert (code, "ask again in 7 s" in said) == (1, True)
    code, said = refused(ask, Reply([error_body("Spent.", "insufficient_quota")], 429))
    assert (code, "Spent" in said) == (2, True)


def test_a_request_that_is_refused_is_the_persons_a_service_that_failed_is_not(ask):
    code, said = refused(ask, Reply([error_body("Picture 1 is a bomb.")], 400))
    assert (code, "refuses this (400): Picture 1 is a bomb." in said) == (2, True)
    code, said = refused(ask, Reply([error_body("The engine is being replaced: ask again.")], 503))
    assert (code, "failed (503): The engine is being replaced" in said) == (1, True)


def test_a_stream_that_says_so_or_ends_without_an_end_has_broken_off(ask):
    begun = episode()[:5]
    code, said = refused(ask, Reply([*begun, b"data: " + error_body("The agent died.") + b"\n\n"]))
    assert (code, "failed while it answered: The agent died." in said) == (1, True)
    code, said = refused(ask, Reply(begun))
    assert (code, "broke off" in said) == (1, True)
    code, said = refused(ask, Reply(begun, cut=True))
    assert (code, "broke off" in said) == (1, True)


def test_a_service_that_falls_silent_is_given_up(ask, monkeypatch):
    monkeypatch.setattr(remote_ask, "SILENT_S", 0.2)
    code, said = refused(ask, Reply(episode(), between_s=30.0))
    assert (code, "broke off" in said or "did not answer" in said) == (1, True)


@pytest.mark.parametrize("models", ["a text", {"data": []}, {"error": {"message": "x"}}, 7])
def test_something_else_that_answers_there_is_not_understood(ask, models):
    with service(Reply(episode())) as server:
        server.models = models
        code, _, said = ask(server.url, "who?")
    assert (code, "does not understand" in said, said.count("\n")) == (1, True, 1)


def test_another_kind_of_server_is_no_service(ask):
    with service(Reply(episode())) as server:
        server.models_status = 404
        code, _, said = ask(server.url, "who?")
    assert (code, "no service of this kind" in said) == (2, True)


@pytest.mark.parametrize(
    "step", [7, {"type": "result"}, {"type": "turn", "number": []}, {"type": "result", "crop_box": [1]}]
)
def test_steps_that_are_not_as_documented_are_one_sentence(ask, step):
    chunks = writer()
    pieces = [chunks.begin(1), chunks.step(0, {"type": "turn", "number": 1}), chunks.step(0, step)]
    code, said = refused(ask, Reply(pieces))
    assert (code, "does not understand" in said) == (1, True)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a?b", "http://[::1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UserError, match="must be a service's address"):
        service_at(url)


def test_a_key_variable_that_is_named_must_be_set_and_hold_a_key(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError, match="which is not set"):
        service_at("http://a", "NO_KEY")
    monkeypatch.setenv("NO_KEY", "a\u00e9")
    with pytest.raises(UserError, match="characters that no key has") as said:
        service_at("http://a", "NO_KEY")
    assert "\u00e9" not in said.value.message


def test_options_that_do_not_go_together_are_refused(ask, monkeypatch, capsys):
    code, _, said = ask("http://127.0.0.1:9", "who?", "--checkpoint", "sft")
    assert (code, "leave out --checkpoint" in said) == (2, True)
    monkeypatch.setattr(sys, "argv", ["mmsearch", "ask", "who?", "--key-env", "X"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "give its address with --url" in capsys.readouterr().err


def test_an_answer_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(remote_ask, "LONGEST_S", 0.3)
    lines = StepLines(Console(quiet=True))
    with service(Reply([b": at work\n\n"] * 100, between_s=0.05)) as server:
        asked = service_at(server.url)
        with pytest.raises(RunBroken, match="did not end its answer"):
            remote_ask.answered_by(asked, Question("q", "who?", ()), [], lines)
