"""Where a run's curves go besides `metrics.jsonl`: TensorBoard, wandb, mlflow, trackio, or a class by dotted path.

Each library is imported only when it is named, in the thread that feeds it (cluster/tracker_thread.py). All of them
work without a network: wandb is offline unless a key is found or WANDB_MODE says otherwise, mlflow writes one sqlite
file into the run's folder unless MLFLOW_TRACKING_URI is set, trackio keeps its files where `trackio show` looks for
them (TRACKIO_DIR, or the user's cache).

Your own: a class that is called with a `TrackedRun` and has `log` and `close`, named as `package.module:Class`.
"""

from __future__ import annotations

import importlib
import importlib.util
import netrc
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import UserError

PROJECT = "mmsearch"  # at wandb, mlflow and trackio, where their own environment variables do not say another
WANDB_START_S = 30.0  # for wandb's own process, and for its server if there is one
MLFLOW_BATCH = 1000  # metrics that mlflow takes at once
MLFLOW_LONGEST = 500  # characters of a parameter that every version of mlflow takes


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when it starts."""

    name: str  # for people, as in embedded/grpo
    folder: Path  # local; what is written here goes to the run's storage
    settings: Mapping[str, Any]  # the resolved configuration, plain values
    id: str  # the same for all parts of a run that was stopped and continued
    resume_at: int | None = None  # last step that an earlier part logged and that counts; None: it starts anew


class Tracker(Protocol):
    """Shows the curves of one run. Every method may raise and may block: it is given a thread of its own."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Finite numbers of a step by name (`group/name`); a step may come in several parts."""
        ...

    def close(self) -> None:
        """All is logged: bring it home."""
        ...


@dataclass(frozen=True)
class Tracking:
    """Which trackers a stage's metrics go to. No part of what a run is: it changes nothing that is learned."""

    trackers: Sequence[str] = ("tensorboard",)
    name: str = ""  # of the run
    settings: Mapping[str, Any] = field(default_factory=dict)


def check(names: Sequence[str]) -> None:
    """Raise `UserError` for a tracker that could not start: no such name, its library or its class is not there."""
    for name in names:
        if ":" in name:
            _class_at(name)
        elif name not in TRACKERS:
            raise UserError(
                f"There is no tracker {name!r}; there are {', '.join(TRACKERS)}, or your own as package.module:Class."
            )
        elif importlib.util.find_spec(_LIBRARY.get(name, name)) is None:
            raise UserError(f"The tracker {name} needs a library that is not installed: pip install {name}")
    if len(set(names)) != len(names):
        raise UserError(f"A tracker is named twice: {', '.join(names)}.")


def start(name: str, run: TrackedRun) -> Tracker:
    """A tracker by its name or dotted path. May block; raise what the library raises."""
    return TRACKERS[name](run) if name in TRACKERS else _class_at(name)(run)


def _class_at(path: str) -> Callable[[TrackedRun], Tracker]:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"The tracker {path} cannot be loaded: {error}") from error


class TensorBoard:
    """Event files in `tensorboard/`. What a resumed run makes again replaces what was there."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        purge = None if run.resume_at is None else run.resume_at + 1
        self._board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge, flush_secs=5)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """One run of `WANDB_PROJECT`. Offline it leaves `wandb/`, for `wandb sync`; of a step that is made again after a
    resume, wandb keeps the first."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            mode=wandb_mode(os.environ),
            settings=wandb.Settings(init_timeout=WANDB_START_S, console="off", silent=True),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def wandb_mode(environment: Mapping[str, str]) -> Any:
    """What WANDB_MODE says; else online where a key is found, as wandb itself would ask for one."""
    if mode := environment.get("WANDB_MODE"):
        return mode
    if environment.get("WANDB_API_KEY"):
        return "online"
    host = re.sub(r"^https?://", "", environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).rstrip("/")
    try:
        known = netrc.netrc(environment.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"


class MLflow:
    """One run of the experiment `MLFLOW_EXPERIMENT_NAME`, found again by its id after a resume."""

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or f"sqlite:///{run.folder / 'mlflow.db'}")
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), ours=not uri)
        found = self._client.search_runs([experiment], f"tags.`mmsearch.id` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.name, tags={"mmsearch.id": run.id})
        self._id = made.info.run_id
        settings = [Param(name, str(value)[:MLFLOW_LONGEST]) for name, value in flat(run.settings).items()]
        for first in range(0, len(settings), 100):  # mlflow takes 100 parameters at once
            self._client.log_batch(self._id, params=settings[first : first + 100])

    def _experiment(self, name: str, ours: bool) -> str:
        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        where = (self._folder / "mlflow").as_uri() if ours else None
        return self._client.create_experiment(name, artifact_location=where)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = [self._metric(re.sub(r"[^\w\-. /]", "_", name), v, now, step) for name, v in metrics.items()]
        for first in range(0, len(named), MLFLOW_BATCH):
            self._client.log_batch(self._id, metrics=named[first : first + MLFLOW_BATCH])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """One run of a local trackio project; look at it with `trackio show`."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run.id[:8]}",  # it finds a run again by its name
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"grpo": {"steps": 3}}` as `{"grpo.steps": 3}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}
_LIBRARY = {"tensorboard": "tensorboardX"}
