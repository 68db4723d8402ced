"""What Ray Serve is told, as the document that its REST API takes, and the client that tells it.

The declarative way, not `serve.run`: a document whose `user_config` alone has changed makes Serve call `reconfigure` on
the replicas that run, where a second `serve.run` would start them all anew.

Always true: Serve ends every declared application that a document leaves out, so what others deployed on the same
cluster is in each that goes there; between the look at it and the document that follows, nobody else should deploy.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import RunBroken, UserError
from workflows.serve import front
from workflows.serve.settings import ServeSettings

APPLICATION = "mmsearch"
NONE_OF_OURS = "The cluster runs no service of ours: start one with `mmsearch serve`."
IMPORT_PATH = "workflows.serve.app:build"
AGENT, INGRESS = "Agent", "Ingress"
LOOK_S = 0.5  # between two looks at how it stands
ANSWER_S = 60.0  # for Ray's dashboard to answer
# Of Serve's processes, its proxies included: our code only awaits, so it needs no thread of its own beside Serve's, and
# what deployments say to each other is small and taken once, so it needs no object store. Nor must the controller look
# ten times a second whether all is as it should be, nor each process tell its metrics as often.
LEAN = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(512 << 20),  # 4 MiB where not given: less than a photograph
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
}
# Of a Ray that is started for the service: its proxies also end what an ingress that died has left without an end.
OWN = LEAN | {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": front.NAME}


def haproxy_environment(folder: str, free_port: Callable[[], int]) -> dict[str, str]:
    """What makes a Ray that is started with it put HAProxy before the ingress, for this service alone.

    `folder` should be one that nobody else may enter, for who opens HAProxy's socket can give it orders, and have a
    short name: to that of the socket, which may have 107 bytes, Ray and HAProxy add 79.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


def document(
    settings: ServeSettings, args: dict[str, Any], checkpoint: str, environment: dict[str, str]
) -> dict[str, Any]:
    """ServeDeploySchema of Ray 2.60, for a service that begins with the weights at `checkpoint`."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.request.seconds + 30.0,  # the ingress ends them long before
            "keep_alive_timeout_s": 75,
        },
        "logging_config": {"enable_access_log": False},  # bodies are never in it, but it costs a line a request
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": args,
                "runtime_env": {"env_vars": LEAN | environment},
                "deployments": [
                    {"name": AGENT, "user_config": {"checkpoint": checkpoint, "version": 1}},
                    {"name": INGRESS, "user_config": {"draining": False}},
                ],
            }
        ],
    }


def weights_of(deployed: dict[str, Any]) -> dict[str, Any]:
    """`{"checkpoint", "version"}` that a deployed document names. Raises `UserError` where it is none of ours."""
    return _deployment_of(deployed, AGENT)["user_config"]


def swapped(deployed: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The same document with other weights, one version on."""
    changed = copy.deepcopy(deployed)
    weights = weights_of(changed)
    weights |= {"checkpoint": checkpoint, "version": int(weights["version"]) + 1}
    return changed


def draining(deployed: dict[str, Any]) -> dict[str, Any]:
    """The same document with doors that let nobody in any more."""
    changed = copy.deepcopy(deployed)
    _deployment_of(changed, INGRESS)["user_config"] = {"draining": True}
    return changed


def _deployment_of(deployed: dict[str, Any], name: str) -> dict[str, Any]:
    for application in deployed.get("applications", ()):
        for deployment in application.get("deployments", ()):
            if (
                application.get("name") == APPLICATION
                and deployment.get("name") == name
                and "user_config" in deployment
            ):
                return deployment
    raise UserError(NONE_OF_OURS)


def beside(made: dict[str, Any], details: dict[str, Any]) -> dict[str, Any]:
    """`made`, with what others deployed where it is to run. `details`: what Serve says of itself there.

    Raises `UserError` where a service of ours runs, and where Serve listens elsewhere: it keeps to that.
    """
    if _application(details).get("status", "DELETING") != "DELETING":
        raise UserError(
            "This cluster runs the service already: swap its weights with `mmsearch serve update`, or stop it first"
            " (Ctrl-C where it was started, or `serve shutdown`, which ends all that Serve runs there)."
        )
    if not details.get("http_options"):
        return made
    wanted, found = made["http_options"], details["http_options"]
    if (wanted["host"], wanted["port"]) != (found["host"], found["port"]):
        raise UserError(
            f"Ray Serve of this cluster listens on {found['host']}:{found['port']} for others already: give the service"
            f" serve.host={found['host']} serve.port={found['port']}, or a cluster of its own."
        )
    options = {name: value for name, value in made.items() if name != "logging_config"}  # theirs stays
    return {**options, **_options(details), "applications": [*made["applications"], *_others(details)]}


def without(details: dict[str, Any]) -> dict[str, Any] | None:
    """The document that leaves others' applications alone; None where there are none, declared or not."""
    if not set(details.get("applications") or {}) - {APPLICATION}:
        return None
    return {**_options(details), "applications": _others(details)}


def runs(details: dict[str, Any], weights: dict[str, Any]) -> bool:
    """Whether Serve has told these weights to every agent. Whether each took them, it does not know."""
    agent = (_application(details).get("deployments") or {}).get(AGENT) or {}
    told = (agent.get("deployment_config") or {}).get("user_config")
    return agent.get("status") == "HEALTHY" and told == weights


def _application(details: dict[str, Any]) -> dict[str, Any]:
    return (details.get("applications") or {}).get(APPLICATION) or {}


def _options(details: dict[str, Any]) -> dict[str, Any]:
    """What a document says of Serve itself, as it is: one that leaves it out would change it."""
    names = ("proxy_location", "http_options", "target_capacity")
    return {name: details[name] for name in names if details.get(name) is not None}


def _others(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The others' applications as they were declared; those that `serve.run` made are none of a document's."""
    return [
        one["deployed_app_config"]
        for name, one in (details.get("applications") or {}).items()
        if name != APPLICATION and one.get("deployed_app_config") and one.get("status") != "DELETING"
    ]


class Controller:
    """Ray's dashboard at `address` (http://host:port), as far as Serve is concerned."""

    def __init__(self, address: str, answer_s: float = ANSWER_S) -> None:
        """`answer_s`: for each of its answers. Raises `UserError` when nothing answers there."""
        self._answer_s = answer_s
        try:
            self._client = _client(address, lambda: self._answer_s)
        except Exception as error:  # of requests, urllib3 and Ray there are many
            raise UserError(
                f"Ray's dashboard does not answer at {address} ({_first_line(error)}): is the service running?"
            ) from error

    def deploy(self, content: dict[str, Any]) -> None:
        """Returns when Serve has taken it, not when it runs. Raises `UserError`, or `RunBroken` if nobody answers."""
        try:
            self._client.deploy_applications(content)
        except RuntimeError as error:
            raise UserError(f"Ray Serve refuses this: {_first_line(error)}") from error
        except OSError as error:
            raise RunBroken(f"Ray's dashboard does not answer any more: {_first_line(error)}") from error

    def details(self) -> dict[str, Any]:
        """What Serve says of itself and its applications. Raises `RunBroken`."""
        try:
            return self._client.get_serve_details()
        except (RuntimeError, OSError) as error:
            raise RunBroken(f"Ray Serve does not say what it runs: {_first_line(error)}") from error

    def deployed(self) -> dict[str, Any]:
        """The document that is deployed, others' applications included. Raises `UserError` when none of ours is."""
        details = self.details()
        ours = _application(details).get("deployed_app_config")
        if not ours:
            raise UserError(NONE_OF_OURS)
        return {**_options(details), "applications": [ours, *_others(details)]}

    def until_running(
        self, timeout_s: float, tell: Callable[[str], None], stopped: Callable[[], bool], now: Any = time.monotonic
    ) -> bool:
        """Wait for all replicas; False when `stopped` says to give up. Raises `RunBroken` when it fails or is late."""
        deadline = now() + timeout_s
        while now() < deadline and not stopped():
            application = _application(self.details())
            status = application.get("status", "NOT_STARTED")
            if status == "RUNNING":
                return True
            if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise RunBroken(f"The service could not start: {_reason(application)}")
            tell(starting(application.get("deployments") or {}))
            time.sleep(LOOK_S)
        if stopped():
            return False
        raise RunBroken(f"The service did not start within {timeout_s:g} s; Ray's logs say why.")

    def end(self, timeout_s: float, now: Any = time.monotonic) -> None:
        """Stop the service, whatever it does; returns when it is gone. Serve ends with it where nobody else uses it.

        Raises `RunBroken`.
        """
        rest = without(self.details())
        self._answer_s = max(self._answer_s, timeout_s)  # Serve answers when all of it has ended, if it ever does
        try:
            if rest is None:
                self._client.delete_applications()
                return
            self._client.deploy_applications(rest)
        except (RuntimeError, OSError) as error:
            raise RunBroken(f"The service could not be stopped: {_first_line(error)}") from error
        deadline = now() + timeout_s
        while _application(self.details()):
            if now() >= deadline:
                raise RunBroken(f"The service did not end within {timeout_s:g} s; Ray's dashboard says what it does.")
            time.sleep(LOOK_S)


def _client(address: str, answer_s: Callable[[], float]) -> Any:
    """Ray's own client, which by itself waits for ever."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    class Client(ServeSubmissionClient):
        def _do_request(self, *words: Any, **more: Any) -> Any:
            return super()._do_request(*words, **{"timeout": answer_s(), **more})

    return Client(address)


def starting(deployments: dict[str, Any]) -> str:
    """Who is awaited, in words."""
    waited: Sequence[str] = [name for name, one in deployments.items() if one.get("status") != "HEALTHY"]
    return f"waiting for {', '.join(sorted(waited))}" if waited else "starting"


def _reason(application: dict[str, Any]) -> str:
    """The last error that Serve tells, and the lines after it, which say what of."""
    messages = [application.get("message", "")]
    messages += [one.get("message", "") for one in (application.get("deployments") or {}).values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if "Error" in line]
    told = lines[errors[-1] :][:3] if errors else lines[-1:]
    return " ".join(told)[:500] or "no reason is given"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
