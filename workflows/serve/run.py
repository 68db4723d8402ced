"""`mmsearch serve` and `mmsearch serve update`: start the service, keep it, swap its weights."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import replace
from enum import Enum
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import yaml
from rich.console import Console

from actors.model.load import local_model, parameter_shapes
from actors.model.settings import absolute
from cluster.config import dump
from cluster.errors import RunBroken, UserError
from cluster.runtime import authenticate, connect, environment, joins, port_is_free
from workflows.ask import model_address
from workflows.progress import stopped_by_signals
from workflows.serve.deploy import (
    OWN,
    Controller,
    beside,
    document,
    draining,
    haproxy_environment,
    runs,
    swapped,
    weights_of,
)
from workflows.serve.till import end_register, journal_folder

RECORD = "serve/service.json"  # in the run's folder: where `update` finds the service
LOOK_S = 0.2  # between two looks at a service
ANSWER_S = 5.0  # for it to answer
SILENT = 5  # looks in a row without an answer, after which Serve's word is taken
REPLICA = {"version", "refused", "episodes"}  # what is told of each
EVERYWHERE = ("0.0.0.0", "::")
END_S = 60.0  # for replicas to be gone, beyond the time that they give requests


class Swap(Enum):
    """What became of new weights."""

    RUNS = "every agent says that it runs them"
    TOLD = "Serve has told every agent; what they say is not heard here"
    REFUSED = "an agent keeps to those that it has"


def run(settings: Any, checkpoint: str | None = None) -> None:
    """Serve until Ctrl-C. Raises `UserError` before anything is started."""
    console = Console(stderr=True)
    chosen = settings.serve
    address = checkpoint_address(settings, checkpoint or chosen.checkpoint)
    starts = not joins(settings.cluster)
    if starts and not port_is_free(chosen.port, chosen.host):
        raise UserError(f"Port {chosen.port} of {chosen.host} is taken; choose another with serve.port=8001.")
    runtime = settings.cluster
    if starts and runtime.dashboard_port is None:
        runtime = replace(runtime, dashboard_port=free_port())
    if chosen.haproxy and not starts:
        raise UserError(
            "serve.haproxy is about the Ray that this command starts; where a cluster is joined, set"
            " RAY_SERVE_ENABLE_HA_PROXY=1 in the environment of each `ray start`."
        )
    with ExitStack() as stack:
        own = dict(OWN)
        if chosen.haproxy:
            own |= haproxy_environment(stack.enter_context(tempfile.TemporaryDirectory(prefix="hap-")), free_port)
        os.environ.update({name: os.environ.get(name, value) for name, value in own.items()})  # proxies have Ray's own
        cluster = stack.enter_context(connect(runtime))
        cluster.require({"CPU": cpus(chosen)}, "the service")
        dashboard = dashboard_address()
        controller = Controller(dashboard)
        args = {"settings": yaml.safe_load(dump(settings))}  # resolved: relative paths mean what they mean here
        made = document(chosen, args, address, environment(settings.cluster))
        controller.deploy(beside(made, controller.details()))
        try:
            _keep(settings, controller, dashboard, address, console)
        finally:
            settings.run.folder.delete(RECORD)
            controller.end(chosen.longest_s + END_S)
            end_register(journal_folder(settings.run.folder))


def _keep(settings: Any, controller: Controller, dashboard: str, address: str, console: Console) -> None:
    """From the deployment until Ctrl-C or SIGTERM."""
    chosen = settings.serve
    with suppress(KeyboardInterrupt), stopped_by_signals() as stopped:
        with console.status("starting") as status:
            if not controller.until_running(chosen.ready_timeout_s, status.update, lambda: bool(stopped)):
                return
        url = f"http://{shown_host(chosen.host)}:{chosen.port}"
        settings.run.folder.write_json(RECORD, {"url": url, "dashboard": dashboard, "model": address})
        console.print(f"[dim]model: {address}[/]", highlight=False)
        print(f"The agent answers at {url} (OpenAI's API at {url}/v1); Ctrl-C stops it.", flush=True)
        while not stopped:
            time.sleep(LOOK_S)
        console.print(f"stopping; requests under way have up to {chosen.drain_s:g} s", highlight=False)
        controller.deploy(draining(controller.deployed()))
        _until_idle(url, chosen.drain_s)


def update(settings: Any, checkpoint: str, dashboard: str | None = None) -> None:
    """Swap the weights of the running service in flight; returns when every agent runs them.

    `dashboard`: Ray's, where the service is none that this run recorded. Raises `UserError`, and `RunBroken` when an
    agent refuses: those that ran before then run again, as a further version.
    """
    authenticate()
    service = {"dashboard": dashboard} if dashboard else _recorded(settings)
    address = checkpoint_address(settings, checkpoint)
    controller = Controller(service["dashboard"])
    deployed = controller.deployed()
    url = service.get("url") or service_url(deployed, service["dashboard"])
    before = str(weights_of(deployed)["checkpoint"])
    _alike(before, address)
    changed = swapped(deployed, address)
    controller.deploy(changed)
    version = int(weights_of(changed)["version"])
    swap = _until_version(controller, url, weights_of(changed), settings.serve.ready_timeout_s)
    if swap is Swap.REFUSED:
        after = _taken_back(controller, url, changed, before, settings.serve.ready_timeout_s)
        raise RunBroken(f"An agent refused version {version} ({address}), and its log says why; {after}.")
    if swap is Swap.TOLD:
        print(
            f"version {version} was told to every agent: {address}; {url} does not answer here, so look at its /readyz"
        )
    else:
        print(f"version {version} runs everywhere: {address}")


def _taken_back(controller: Controller, url: str, changed: dict[str, Any], before: str, timeout_s: float) -> str:
    """Deploy the weights that ran before, so that agents which start later can; what came of it, in words."""
    again = swapped(changed, before)
    controller.deploy(again)
    version = int(weights_of(again)["version"])
    try:
        swap = _until_version(controller, url, weights_of(again), timeout_s)
    except RunBroken:
        return f"version {version}, the weights that ran before ({before}), does not run everywhere yet"
    if swap is Swap.REFUSED:
        return f"version {version}, the weights that ran before ({before}), was refused too: deploy others"
    return f"the weights that ran before run on, as version {version} ({before})"


def checkpoint_address(settings: Any, checkpoint: str | None) -> str:
    """The absolute address of the weights that `checkpoint` means, checked here, with the run's bounds of pictures.

    Each replica opens it where it is: of weights on s3:// a node has a copy of its own.
    """
    address = absolute(settings.pictures.on(model_address(settings.run.folder, checkpoint)))
    local_model(address)
    return address


def cpus(serve: Any) -> float:
    """What must be free for the fewest replicas."""
    agents, searches = serve.agents * serve.agent_cpus, serve.search_replicas * serve.search_cpus
    return agents + searches + serve.ingresses * serve.ingress_cpus


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown_host(host: str) -> str:
    """The host as a person here would write it in an address."""
    if host in EVERYWHERE:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def dashboard_address() -> str:
    """Of the cluster that this process has joined. Raises `UserError` where it has none."""
    import ray

    found = ray.get_runtime_context().worker.node.address_info.get("webui_url")  # type: ignore[union-attr]
    if not found:
        raise UserError("This cluster has no dashboard, through which Ray Serve is told what to run.")
    return f"http://{found}"


def service_url(deployed: dict[str, Any], dashboard: str) -> str:
    """Where a deployed service answers, as seen from where Ray's dashboard is at `dashboard`."""
    options = deployed.get("http_options") or {}
    host = str(options.get("host") or "0.0.0.0")  # Ray's own default is every address
    if host in EVERYWHERE:
        host = urlsplit(dashboard).hostname or host
    return f"http://{shown_host(host)}:{options.get('port') or 8000}"


def _recorded(settings: Any) -> dict[str, str]:
    folder = settings.run.folder
    if not folder.exists(RECORD):
        raise UserError(
            f"No service of the run at {folder} is up: start one with `mmsearch serve`, name the run of one that is up"
            " with run.storage=FOLDER, or give Ray's dashboard with --dashboard."
        )
    return folder.read_json(RECORD)


def _alike(running: str, wanted: str) -> None:
    """Raise `UserError` unless the weights fit the engines that run: they are loaded into them as they are."""
    try:
        model = local_model(running)
    except UserError:  # it lies on another machine, or is gone: each agent compares for itself, and refuses
        return
    if parameter_shapes(model) != parameter_shapes(local_model(wanted)):
        raise UserError(f"{wanted} has other weights than the model that runs ({running}): start the service anew.")


def _until_idle(url: str, drain_s: float) -> None:
    deadline = time.monotonic() + drain_s
    while time.monotonic() < deadline:
        found = _ready(url)
        if found.get("draining") and not found["requests"] and not any(one["episodes"] for one in found["replicas"]):
            return
        time.sleep(LOOK_S)


def _until_version(controller: Controller, url: str, weights: dict[str, Any], timeout_s: float) -> Swap:
    """Wait until these weights run or are refused. Raises `RunBroken` when it takes longer.

    Where `/readyz` is out of reach, Serve's word is taken; a refusal of another version is none of this one.
    """
    version, silent = int(weights["version"]), 0
    deadline = time.monotonic() + timeout_s
    replicas: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        found = _ready(url)
        silent = 0 if found else silent + 1
        replicas = found.get("replicas", [])
        if any(one["refused"] == version for one in replicas):
            return Swap.REFUSED
        if replicas and all(one["version"] >= version for one in replicas):
            return Swap.RUNS
        if silent >= SILENT and runs(controller.details(), weights):
            return Swap.TOLD
        time.sleep(LOOK_S)
    raise RunBroken(f"Version {version} did not run everywhere within {timeout_s:g} s: {replicas}")


def _ready(url: str) -> dict[str, Any]:
    """What `/readyz` tells; nothing where it does not answer, or something else does."""
    found: Any = None
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=ANSWER_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:  # 503: not ready, and why
        with suppress(OSError, ValueError):
            found = json.loads(error.read())
    except (OSError, ValueError, HTTPException):
        pass
    return found if _of_ours(found) else {}


def _of_ours(found: Any) -> bool:
    replicas = found.get("replicas") if isinstance(found, dict) else None
    return isinstance(replicas, list) and all(isinstance(one, dict) and set(one) >= REPLICA for one in replicas)
