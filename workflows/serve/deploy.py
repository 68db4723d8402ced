"""What Ray Serve is told, as the document that its REST API takes, and the client that tells it.

The declarative way, not `serve.run`: a document whose `user_config` alone has changed makes Serve call `reconfigure` on
the replicas that run, where a second `serve.run` would start them all anew.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import RunBroken, UserError
from workflows.serve.settings import ServeSettings

APPLICATION = "mmsearch"
IMPORT_PATH = "workflows.serve.app:build"
AGENT, INGRESS = "Agent", "Ingress"
LOOK_S = 0.5  # between two looks at how it stands
# Of Serve's processes, its proxies included: our code only awaits, so it needs no thread of its own beside Serve's, and
# what deployments say to each other is small and taken once, so it needs no object store.
LEAN = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
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
    raise UserError("The cluster runs no service of ours: start one with `mmsearch serve`.")


class Controller:
    """Ray's dashboard at `address` (http://host:port), as far as Serve is concerned."""

    def __init__(self, address: str) -> None:
        """Raises `UserError` when nothing answers there."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        try:
            self._client = ServeSubmissionClient(address)
        except Exception as error:  # of requests, urllib3 and Ray there are many
            raise UserError(
                f"Ray's dashboard does not answer at {address} ({_first_line(error)}): is the service running?"
            ) from error

    def deploy(self, content: dict[str, Any]) -> None:
        """Returns when Serve has taken it, not when it runs. Raises `UserError`."""
        try:
            self._client.deploy_applications(content)
        except RuntimeError as error:
            raise UserError(f"Ray Serve refuses this: {_first_line(error)}") from error

    def details(self) -> dict[str, Any]:
        """What Serve says of its applications."""
        return self._client.get_serve_details()

    def deployed(self) -> dict[str, Any]:
        """The document that is deployed. Raises `UserError` when none of ours is."""
        details = self._client.get_serve_details()
        found = (details.get("applications") or {}).get(APPLICATION) or {}
        if not found.get("deployed_app_config"):
            raise UserError("The cluster runs no service of ours: start one with `mmsearch serve`.")
        options = {name: details[name] for name in ("proxy_location", "http_options") if details.get(name)}
        return {**options, "applications": [found["deployed_app_config"]]}

    def until_running(
        self, timeout_s: float, tell: Callable[[str], None], stopped: Callable[[], bool], now: Any = time.monotonic
    ) -> bool:
        """Wait for all replicas; False when `stopped` says to give up. Raises `RunBroken` when it fails or is late."""
        deadline = now() + timeout_s
        while now() < deadline and not stopped():
            application = (self._client.get_serve_details().get("applications") or {}).get(APPLICATION) or {}
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

    def end(self) -> None:
        """Stop it, whatever it does; returns when it is gone. Raises `RunBroken`."""
        try:
            self._client.delete_applications()
        except RuntimeError as error:
            raise RunBroken(f"The service could not be stopped: {_first_line(error)}") from error


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
