"""Start or join Ray, and leave it again.

`connect(settings)` is the only place that calls `ray.init`. Always true after it: the namespace is
`mmsearch`, the environment that vLLM, DeepSpeed and OpenMP need on a small machine is set in this process and
in every worker, and whatever is known to go wrong later (too few cores, a small /dev/shm, a port taken, a
full disk, resources that the cluster does not have) went wrong here, as one sentence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import machine
from cluster.errors import UserError

log = logging.getLogger(__name__)
NAMESPACE = "mmsearch"
_MIB = 1 << 20
_MIN_TMP_FREE = 1 << 30  # Ray's session folder, logs and spilled objects live there


@dataclass(frozen=True)
class RuntimeSettings:
    """How a run gets its cluster."""

    address: str = "auto"
    # auto: join the cluster in $RAY_ADDRESS (a submitted job has one), else start Ray here;
    # local: always start one here; anything else: join that
    namespace: str = NAMESPACE
    # actors of one namespace see each other by name; the quota broker counts on it
    num_cpus: int | None = field(default=None, metadata={"ge": 1})
    # logical CPUs of a cluster started here; the cores that this process may use when not given
    num_gpus: int | None = field(default=None, metadata={"ge": 0})
    # GPUs of a cluster started here; all that are visible when not given
    oversubscribe: bool = False
    # allow more logical CPUs than the machine has cores; everything then gets slower, nothing fails
    object_store_mib: int = field(default=1024, metadata={"ge": 80})
    # shared memory for Ray's objects, MiB; payloads of episodes and weights pass through it. Ray needs 80
    dashboard_port: int | None = field(default=None, metadata={"ge": 1, "le": 65535})
    # serve Ray's dashboard on 127.0.0.1 at this port; no dashboard when not given
    threads: int = field(default=1, metadata={"ge": 1})
    # OMP_NUM_THREADS of every process that does not choose for itself
    wait_for_nodes_s: float = field(default=0.0, metadata={"ge": 0})
    # how long an autoscaling cluster may take to grow to what the run needs; 0 where the size is fixed
    worker_output: bool = False
    # show here what actors print, engines and trainers included; it is always in the logs of Ray's session
    env: dict[str, str] = field(default_factory=dict)
    # further environment variables for every process of the run


def environment(settings: RuntimeSettings) -> dict[str, str]:
    """The variables that every process of a run has, unless the shell has set them differently."""
    wanted = {
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # any other binding is ten times slower on a small machine
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not machine.gpus():
        wanted["DS_ACCELERATOR"] = "cpu"
    return {**{name: os.environ.get(name, value) for name, value in wanted.items()}, **settings.env}


class Cluster(AbstractContextManager["Cluster"]):
    """A connection to Ray; as a context manager it lets go of what it started."""

    def __init__(self, *, started: bool, settings: RuntimeSettings) -> None:
        self._owns = started
        self.settings = settings

    @property
    def resources(self) -> Mapping[str, float]:
        """What all nodes have together, by Ray's names (CPU, GPU, memory in bytes, ...)."""
        import ray

        return ray.cluster_resources()

    def require(self, needed: Mapping[str, float], what: str = "this run") -> None:
        """Raises UserError if the cluster has not, and does not grow to have, what is asked."""
        import time

        deadline = time.monotonic() + self.settings.wait_for_nodes_s
        if self.settings.wait_for_nodes_s and shortage(needed, self.resources):
            _ask_autoscaler(needed)
        while missing := shortage(needed, self.resources):
            if time.monotonic() >= deadline:
                raise UserError(f"{what} needs {missing}; ask for less in the configuration, or give the cluster more.")
            time.sleep(1.0)
        if taken := shortage(needed, self.free, "free:"):
            log.warning("%s needs %s: it waits for what others on this cluster hold.", what, taken)

    @property
    def free(self) -> Mapping[str, float]:
        """What no actor and no task holds now."""
        import ray

        return ray.available_resources()

    @asynccontextmanager
    async def starting(self, what: str, timeout_s: float) -> AsyncIterator[None]:
        """Around the wait for actors: Ray lets one pend for ever while others hold its cores, this raises UserError."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            free, there = self.free, self.resources
            names = ["CPU", "GPU"] if "GPU" in there else ["CPU"]
            left = (f"{free.get(name, 0):g} of the cluster's {there.get(name, 0):g} {name}" for name in names)
            raise UserError(
                f"{what} did not start within {timeout_s:g} s: {' and '.join(left)} are free;"
                " end what holds the others, or give this run more time (ready_timeout_s)."
            ) from error

    def close(self) -> None:
        """Stops what `connect` started; a cluster that was joined, or was there before, stays."""
        if not self._owns:
            return
        import ray

        self._owns = False
        ray.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(settings: RuntimeSettings) -> Cluster:
    """Start or join Ray. In a process that is connected already, that connection is used and left alone."""
    environ = environment(settings)
    os.environ.update(environ)
    joining = joins(settings)
    if joining:
        authenticate()

    import ray

    if ray.is_initialized():
        return Cluster(started=False, settings=settings)
    common: dict[str, Any] = {
        "namespace": settings.namespace,
        "runtime_env": {"env_vars": {k: v for k, v in environ.items() if k not in _job_variables()}},
        "log_to_driver": settings.worker_output,
        "logging_level": "WARNING",
    }
    if joining:
        _join(settings.address, common)
    else:
        _start(settings, common)
    return Cluster(started=True, settings=settings)


def joins(settings: RuntimeSettings) -> bool:
    """Whether `connect` joins a cluster that is there, as opposed to starting one of its own."""
    return settings.address not in ("auto", "local") or (
        settings.address == "auto" and bool(os.environ.get("RAY_ADDRESS"))
    )


def authenticate() -> None:
    """Show this user's token, if there is one, to clusters and dashboards that are asked from here."""
    if "RAY_AUTH_MODE" in os.environ or not token():
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:  # it has read its environment at its import, and would now disagree with its own children
        from ray._raylet import Config

        Config.initialize("")


def token() -> str:
    """What this user shows to Ray's dashboard and clusters, as Ray finds it; "" without one.

    Ray looks for it by itself only when it also finds the cluster.
    """
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    return file.read_text().strip() if file.is_file() else ""


def _job_variables() -> set[str]:
    """The names that a submitted job's own runtime_env sets: Ray refuses to have one set twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def _join(address: str, common: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import RayError

    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if not answers(where):
        raise UserError(
            f"There is no Ray cluster to join at {where}: nothing answers there; start one with "
            "ray start --head, or set cluster.address=local."
        )
    try:
        ray.init(address=where, **common)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, RayError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"There is no Ray cluster to join at {where}: {reason}") from error


def _start(settings: RuntimeSettings, common: dict[str, Any]) -> None:
    import ray

    cpus = check_start(settings)
    # Token authentication is Ray's default for a new cluster, and it warns that it is.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    dashboard = settings.dashboard_port is not None
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=settings.num_gpus,
            object_store_memory=settings.object_store_mib * _MIB,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            dashboard_port=settings.dashboard_port,
            **common,
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"Ray could not start on this machine: {reason}") from error


def check_start(settings: RuntimeSettings) -> int:
    """The logical CPUs to start with; raises UserError for all that would keep Ray from running well."""
    cores = machine.cores()
    cpus = settings.num_cpus or cores
    if cpus > cores and not settings.oversubscribe:
        raise UserError(
            f"cluster.num_cpus is {cpus} and this machine has {cores}; ask for at most {cores}, "
            "or set cluster.oversubscribe=true."
        )
    gpus = len(machine.gpus())
    if (settings.num_gpus or 0) > gpus:
        raise UserError(f"cluster.num_gpus is {settings.num_gpus} and this machine has {gpus}.")
    shm = machine.shm_free()
    if shm is not None and shm < settings.object_store_mib * _MIB:
        raise UserError(
            f"/dev/shm has {shm // _MIB} MiB free and cluster.object_store_mib is "
            f"{settings.object_store_mib}; lower it, or give the container more (docker run --shm-size=2g)."
        )
    tmp = machine.tmp_folder()
    if machine.disk_free(tmp) < _MIN_TMP_FREE:
        raise UserError(f"{tmp} has less than 1 GiB free, which Ray needs for its session; free some disk.")
    if settings.dashboard_port is not None and not port_is_free(settings.dashboard_port):
        raise UserError(
            f"Port {settings.dashboard_port} is taken by another process; choose another cluster.dashboard_port."
        )
    return cpus


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def answers(address: str, timeout_s: float = 5.0) -> bool:
    """Whether something listens at `host:port` or `ray://host:port`; Ray itself retries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return True  # no address of that form; Ray will say what it thinks of it
    try:
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except (OSError, OverflowError):
        return False
    return True


def shortage(needed: Mapping[str, float], available: Mapping[str, float], says: str = "the cluster has") -> str:
    """What is missing in words, as `4 CPU (the cluster has 2)`; empty if nothing is."""
    return ", ".join(
        f"{amount:g} {name} ({says} {available.get(name, 0):g})"
        for name, amount in needed.items()
        if amount > available.get(name, 0) + 1e-9
    )


def _ask_autoscaler(needed: Mapping[str, float]) -> None:
    """A standing hint to the autoscaler; a cluster without one ignores it."""
    from ray.autoscaler.sdk import request_resources

    bundles = [{name: 1} for name, amount in needed.items() for _ in range(int(-(-amount // 1)))]
    request_resources(bundles=[{name: float(count) for name, count in bundle.items()} for bundle in bundles])
