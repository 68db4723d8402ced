"""Ray's dashboard and a service behind it on 127.0.0.1, as far as `mmsearch serve` asks them: what is deployed decides
what runs, and a declared application that a document leaves out ends."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from workflows.serve.deploy import AGENT, APPLICATION, weights_of


@dataclass
class Replica:
    """An agent. `cannot`: the checkpoints that it refuses."""

    version: int = 1
    refused: int | None = None
    cannot: frozenset[str] = frozenset()
    episodes: int = 0

    def reconfigure(self, weights: dict[str, Any]) -> None:
        if weights["checkpoint"] in self.cannot:
            self.refused = weights["version"]
        else:
            self.version, self.refused = weights["version"], None

    def standing(self) -> dict[str, Any]:
        """Its line of /readyz: what one look at it says."""
        return {"version": self.version, "healthy": True, "refused": self.refused, "episodes": self.episodes}


@dataclass
class Cluster:
    """`told` are the documents, `asked` the other requests, in order."""

    applications: dict[str, dict[str, Any]] = field(default_factory=dict)
    http_options: dict[str, Any] | None = None
    agents: list[Replica] = field(default_factory=lambda: [Replica()])
    answers: bool = True  # /readyz; 404 otherwise
    draining: bool = False
    ends: bool = True  # when it is told to; else not before `stuck` is set
    stuck: Event = field(default_factory=Event)
    requests: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def details(self) -> dict[str, Any]:
        """As Serve gives them: without `http_options` where it does not run."""
        serves = {"proxy_location": "EveryNode", "http_options": self.http_options} if self.http_options else {}
        return {**serves, "applications": self.applications, "target_capacity": None}

    @property
    def ready(self) -> dict[str, Any]:
        """What `/readyz` answers."""
        replicas = [one.standing() for one in self.agents]
        return {"status": "ready", "draining": self.draining, "requests": self.requests, "replicas": replicas}

    def deploy(self, content: dict[str, Any]) -> None:
        """What a PUT does."""
        self.http_options = self.http_options or content["http_options"]
        declared = {one["name"]: one for one in content["applications"]}
        self.applications = {
            name: one for name, one in self.applications.items() if name in declared or not one["deployed_app_config"]
        }
        for name, one in declared.items():
            self.applications[name] = {"name": name, "status": "RUNNING", "deployed_app_config": one, "deployments": {}}
        if APPLICATION in declared:
            weights = weights_of(content)
            agent = {"name": AGENT, "status": "HEALTHY", "deployment_config": {"user_config": weights}}
            self.applications[APPLICATION]["deployments"] = {AGENT: agent}
            for replica in self.agents:
                replica.reconfigure(weights)

    def hand(self, method: str, path: str, body: bytes) -> Any:
        """The answer to a request; None where there is no such thing."""
        if method == "PUT":
            content = json.loads(body)
            self.told.append(content)
            self.deploy(copy.deepcopy(content))
            return {}
        self.asked.append(f"{method} {path}")
        if method == "DELETE":
            if not self.ends:
                self.stuck.wait(10.0)
            self.applications, self.http_options = {}, None
            return {}
        if path == "/readyz":
            return self.ready if self.answers else None
        if path == "/api/ray/version":
            return {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
        return self.details


def declared(name: str, **more: Any) -> dict[str, Any]:
    """Somebody's application as Serve tells of it."""
    config = {"name": name, "route_prefix": f"/{name}", "import_path": f"{name}:app", **more}
    return {"name": name, "status": "RUNNING", "deployed_app_config": config, "deployments": {}}


@contextmanager
def loopback(cluster: Cluster) -> Iterator[Cluster]:
    """`cluster` at an address, which is also that of the service."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            answer = cluster.hand(self.command, self.path, body)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
