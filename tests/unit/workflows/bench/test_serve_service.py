"""How the bench holds a service; the services here are real processes that live for moments."""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import psutil
import pytest

from cluster.errors import RunBroken
from workflows.bench import serve_service
from workflows.bench.serve_service import Service, replica_states, role_of
from workflows.serve.run import RECORD

STARTS = """
import json, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(FOLDER)
(folder / "serve").mkdir(exist_ok=True)
(folder / RECORD).write_text(json.dumps({"url": URL, "dashboard": URL, "model": "m"}))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / "child").write_text(str(child.pid))
def stop(*_):
    AT_STOP
signal.signal(signal.SIGINT, stop)
print(f"The agent answers at {URL} (OpenAI's API at {URL}/v1); Ctrl-C stops it.", flush=True)
time.sleep(60)
"""


class Answers(BaseHTTPRequestHandler):
    """The dashboard's list of replicas, and /readyz."""

    details: dict = {}  # noqa: RUF012 - set by the test
    ready: dict = {}  # noqa: RUF012

    def do_GET(self):
        body = json.dumps(self.ready if self.path == "/readyz" else self.details).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *_):
        pass


@pytest.fixture
def dashboard():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A service that is this program."""

    def service(program=STARTS, at_stop="child.kill(); sys.exit(0)", url="http://127.0.0.1:9"):
        words = {"FOLDER": repr(str(tmp_path)), "RECORD": repr(RECORD), "URL": repr(url), "AT_STOP": at_stop}
        text = program.replace("{URL}", url)
        for name, value in words.items():
            text = text.replace(name, value)
        monkeypatch.setattr(Service, "_command", lambda *_: [sys.executable, "-c", text])
        return Service([], tmp_path, tmp_path / "log.txt")

    return service


def ended(pid: int) -> bool:
    """Whether a process ends within a while."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def details(**states):
    replicas = [{"pid": int(name[1:]), "state": state} for name, state in states.items()]
    agent = {"deployments": {"Agent": {"replicas": replicas}, "Search": {"replicas": [{"pid": 9, "state": "RUNNING"}]}}}
    return {"applications": {"mmsearch": agent}}


def test_it_is_there_when_it_says_so_and_ends_in_good_order(made, tmp_path):
    with made() as service:
        assert service.url == "http://127.0.0.1:9"
        child = int((tmp_path / "child").read_text())
        held = service.memory_mib()
        assert set(held) == {"command"}
        assert held["command"] > 5
    assert ended(child)


def test_one_that_ends_by_itself_is_broken_and_its_log_is_named(made, tmp_path):
    with pytest.raises(RunBroken, match=r"ended by itself with 3; its log is .*log\.txt"), made("raise SystemExit(3)"):
        pass


def test_one_that_does_not_start_is_killed_with_all_that_it_started(made, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_service, "STARTS_WITHIN_S", 1.5)
    silent = STARTS.replace("print(", "(lambda *_, **__: None)(")
    with pytest.raises(RunBroken, match=r"did not start within 1\.5 s"), made(silent):
        pass
    assert ended(int((tmp_path / "child").read_text()))


def test_one_that_does_not_stop_is_killed_and_broken(made, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_service, "STOPS_WITHIN_S", 0.3)
    with pytest.raises(RunBroken, match="was stopped and ended with None"), made(at_stop="pass"):
        pass
    assert ended(int((tmp_path / "child").read_text()))


def test_what_it_started_ends_also_when_the_bench_fails(made, tmp_path):
    with pytest.raises(ZeroDivisionError), made(at_stop="sys.exit(0)"):
        raise ZeroDivisionError
    assert ended(int((tmp_path / "child").read_text()))


def test_the_version_of_an_update_is_what_the_command_says(made, monkeypatch, tmp_path):
    service = made("print('version 7 runs everywhere: m')")
    assert service.update("sft") == 7
    with pytest.raises(RunBroken, match="ended with 2: no such model"):
        made("import sys; print('no such model', file=sys.stderr); sys.exit(2)").update("sft")
    monkeypatch.setattr(serve_service, "UPDATES_WITHIN_S", 0.3)
    with pytest.raises(RunBroken, match="did not end within"):
        made("import time; time.sleep(60)").update("sft")


def test_it_is_whole_when_as_many_agents_run_and_are_ready_and_the_dead_is_gone(made, dashboard, monkeypatch):
    two = {"replicas": [{"healthy": True}, {"healthy": True}]}
    with made(url=dashboard) as service:

        def whole(states, ready, agents=2):
            monkeypatch.setattr(Answers, "details", details(**states))
            monkeypatch.setattr(Answers, "ready", ready)
            return service.whole(agents, without=(5,))

        assert whole({"p1": "RUNNING", "p2": "RUNNING"}, two)
        assert not whole({"p1": "RUNNING", "p5": "RUNNING"}, two)  # the dead one is believed to live
        assert not whole({"p1": "RUNNING", "p2": "RUNNING", "p5": "STOPPING"}, two)
        assert not whole({"p1": "RUNNING", "p2": "STARTING"}, two)
        assert not whole({"p1": "RUNNING", "p2": "RUNNING"}, {"replicas": [{"healthy": True}, {"healthy": False}]})
        assert not whole({"p1": "RUNNING", "p2": "RUNNING"}, {"status": "no agent is ready"})
        assert whole({"p1": "RUNNING"}, two, agents=1)


def test_of_agents_the_one_that_plays_most_is_counted(made, dashboard, monkeypatch):
    with made(url=dashboard) as service:
        monkeypatch.setattr(Answers, "ready", {"replicas": [{"episodes": 3}, {"episodes": 5}, {}]})
        assert service.most_episodes() == 5
        monkeypatch.setattr(Answers, "ready", {"status": "no agent is ready"})
        assert service.most_episodes() == 0


def test_agents_are_those_of_our_application_and_a_starting_one_has_no_process_yet():
    found = details(p1="RUNNING", p2="STARTING")
    found["applications"]["mmsearch"]["deployments"]["Agent"]["replicas"].append({"pid": None, "state": "STARTING"})
    assert replica_states(found) == {1: "RUNNING", 2: "STARTING"}
    assert replica_states({}) == replica_states({"applications": {"other": {}}}) == {}


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::ServeReplica:mmsearch:Agent", "agent"),
        ("ray::ProxyActor", "proxy"),
        ("ray::ServeController.listen_for_change", "controller"),
        ("VLLM::EngineCore", "engine"),
        ("/x/site-packages/ray/core/src/ray/raylet/raylet --a", "ray"),
        ("python -u /x/site-packages/ray/dashboard/dashboard.py --host=127.0.0.1", "dashboard"),
        ("python -m workflows.cli serve", "command"),
    ],
)
def test_processes_are_told_apart_by_their_titles(title, role):
    assert role_of(title) == role
