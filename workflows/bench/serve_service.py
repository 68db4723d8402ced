"""`mmsearch serve` as the bench sees it: a process that is started, asked, told new weights, hurt and stopped.

Always true: what was started has ended when the `with` ends, whatever happened in it; every wait has an end; which
replicas there are is Ray Serve's own word, of its dashboard.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cluster.errors import RunBroken
from cluster.runtime import token
from workflows.serve.deploy import AGENT, APPLICATION
from workflows.serve.run import RECORD

STARTS_WITHIN_S = 300.0
UPDATES_WITHIN_S = 120.0
STOPS_WITHIN_S = 120.0  # beyond it everything that it started is killed
LOOK_S = 0.2
ANSWERS_WITHIN_S = 5.0  # the dashboard, and /readyz
_READY = re.compile(r"answers at (http://\S+?)[\s/]")
ROLES = (
    ("ServeReplica:mmsearch:Ingress", "ingress"),
    ("ServeReplica:mmsearch:Agent", "agent"),
    ("ServeReplica:mmsearch:Search", "search"),
    ("ProxyActor", "proxy"),
    ("ServeController", "controller"),
    ("EngineCore", "engine"),
    ("VLLM::Worker", "engine"),
    ("/ray/dashboard/", "dashboard"),
    ("ray-dashboard", "dashboard"),
    ("raylet", "ray"),
    ("gcs_server", "ray"),
    ("ray::", "ray"),
    ("/ray/", "ray"),
)  # by what stands in a process's title; the first that fits
Found = TypeVar("Found")


class Service(AbstractContextManager["Service"]):
    """A service of a run. `words`: what the run is configured by, as on the command line; `folder`: the run's."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path, more: Sequence[str] = ()) -> None:
        self._words, self._folder, self._log = [*words, f"serve.port={free_port()}", *more], folder, log
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}  # all that it was ever seen to have started
        self._dashboard = ""
        self.url = ""

    def __enter__(self) -> Service:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
            said_before = out.tell()
            self._process = subprocess.Popen(
                self._command("serve"),
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the bench, which then stops it in good order
            )
        try:
            self.url = self._until(lambda: self._ready(said_before), STARTS_WITHIN_S, "did not start")
            self._dashboard = json.loads((self._folder / RECORD).read_text())["dashboard"]
        except BaseException:
            self._end(self._family())
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it as by Ctrl-C. Raises `RunBroken` when it did not end in good order."""
        assert self._process is not None
        family = self._family()
        ended = self._process.poll()
        if ended is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOPS_WITHIN_S)
        code = self._process.poll()
        self._end(family)
        if ended is not None or code != 0:
            said = f"ended with {ended}" if ended is not None else f"was stopped and ended with {code}"
            raise RunBroken(f"The service {said}; its log is {self._log}.")

    def update(self, checkpoint: str) -> int:
        """New weights on every replica; their version. Returns when the command does. Raises `RunBroken`."""
        command = self._command("serve", "update", "--checkpoint", checkpoint)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=UPDATES_WITHIN_S, check=False)
        except subprocess.TimeoutExpired:
            raise RunBroken(f"`mmsearch serve update` did not end within {UPDATES_WITHIN_S:g} s.") from None
        version = re.search(r"version (\d+) runs everywhere", done.stdout)
        if done.returncode or version is None:
            raise RunBroken(f"`mmsearch serve update` ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return int(version[1])

    def agents(self) -> dict[int, str]:
        """State of each agent replica by its pid, as Ray Serve has it; none where it does not answer."""
        found = _json(f"{self._dashboard}/api/serve/applications/", {"Authorization": f"Bearer {token()}"})
        return replica_states(found) if isinstance(found, Mapping) else {}

    def whole(self, agents: int, without: Sequence[int] = ()) -> bool:
        """Whether so many agents run and are ready, none of them with such a pid."""
        states = self.agents()
        running = [pid for pid, state in states.items() if state == "RUNNING" and pid not in without]
        if len(running) < agents or any(pid in states for pid in without):
            return False
        return sum(bool(one.get("healthy")) for one in self._replicas()) >= agents

    def most_episodes(self) -> int:
        """That one agent plays now, of those that say so; 0 where none does."""
        return max((int(one.get("episodes", 0)) for one in self._replicas()), default=0)

    def niceness(self) -> int:
        """Of its agents: what they are compared with should have the same."""
        return max((psutil.Process(pid).nice() for pid in self.agents()), default=0)

    def kill(self, pid: int) -> None:
        """SIGKILL to one replica, and to nothing of its family."""
        os.kill(pid, signal.SIGKILL)

    def memory_mib(self) -> dict[str, float]:
        """What all its processes hold, by role: what several share is counted once (proportional set size)."""
        held: defaultdict[str, float] = defaultdict(float)
        for one in self._family():
            try:
                held[role_of(" ".join(one.cmdline()))] += one.memory_full_info().pss / (1 << 20)
            except psutil.Error:  # it has ended
                continue
        return dict(held)

    def _replicas(self) -> Sequence[Mapping[str, Any]]:
        """Its agents, as /readyz has them."""
        found = _json(f"{self.url}/readyz")
        return found.get("replicas", ()) if isinstance(found, Mapping) else ()

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "workflows.cli", *words, *self._words]

    def _ready(self, said_before: int) -> str:
        said = _READY.search(self._log.read_bytes()[said_before:].decode(errors="replace"))
        return said[1] if said else ""

    def _until(self, look: Callable[[], Found], seconds: float, what: str) -> Found:
        """The first answer that is true. Raises `RunBroken` for none in time, and for a service that has ended."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert self._process is not None
            if self._process.poll() is not None:
                raise RunBroken(f"The service ended by itself with {self._process.poll()}; its log is {self._log}.")
            if time.monotonic() > deadline:
                raise RunBroken(f"The service {what} within {seconds:g} s; its log is {self._log}.")
            time.sleep(LOOK_S)
        return found

    def _family(self) -> list[psutil.Process]:
        """It, and all that it has started and that lives."""
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            self._known |= {one.pid: one for one in (root, *root.children(recursive=True))}
        return [one for one in self._known.values() if one.is_running()]  # of a pid that was given again it is False

    def _end(self, family: Sequence[psutil.Process]) -> None:
        """Whatever is left of it is killed."""
        assert self._process is not None
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()


def replica_states(details: Mapping[str, Any]) -> dict[int, str]:
    """State by pid of our agents' replicas, out of what Ray Serve's REST API tells."""
    application = (details.get("applications") or {}).get(APPLICATION) or {}
    agent = (application.get("deployments") or {}).get(AGENT) or {}
    return {int(one["pid"]): str(one["state"]) for one in agent.get("replicas") or () if one.get("pid")}


def role_of(title: str) -> str:
    """What a process with this command line is of the service; "command" for none of its parts."""
    return next((role for mark, role in ROLES if mark in title), "command")


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _json(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """None where nobody answers, or with something else."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine's
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=ANSWERS_WITHIN_S) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None
