"""The root configuration: one frozen dataclass, composed from the components' own.

To add a component, give `Settings` a field of the component's dataclass with a `default_factory`; its keys
are then valid in every YAML file and on the command line, and its ranges and `check()` are enforced
(cluster/config.py). Importing this module must stay cheap: dataclass modules import neither torch, nor vLLM,
nor Ray.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from actors.agent.settings import AgentSettings
from actors.learner.settings import LearnerSettings
from actors.model.settings import PictureSettings
from actors.reward.settings import RewardSettings
from actors.sampler.settings import EngineSettings
from actors.search.settings import SearchSettings
from cluster import config, trackers
from cluster.runtime import RuntimeSettings
from cluster.storage import Folder
from cluster.trackers import Tracking
from workflows.dataset.settings import DatasetSettings
from workflows.demo_settings import DemoSettings
from workflows.embedded.entities import WorldSettings
from workflows.embedded.pretrain_settings import PretrainSettings
from workflows.embedded.questions import MixSettings
from workflows.evaluate.settings import EvaluateSettings
from workflows.grpo.settings import GrpoSettings
from workflows.predict.settings import PredictSettings
from workflows.serve.settings import ServeSettings
from workflows.sft_settings import SftSettings


def _in_run_folder(name: str, *, _root_: Any) -> str:
    """`${in_run_folder:world}`: an absolute address inside this run's folder, as providers in far processes need it."""
    run = RunSettings(name=_root_.run.name, storage=_root_.run.storage)
    return (run.folder / name).address


def _beside_run_folder(name: str, *, _root_: Any) -> str:
    """`${beside_run_folder:quota}`: an absolute address next to this run's folder, for what all runs share."""
    run = RunSettings(name=_root_.run.name, storage=_root_.run.storage)
    return f"{run.folder.address.rstrip('/').rpartition('/')[0]}/{name}"


def _here(path: str) -> str:
    """`${here:models/some}`: the absolute address of a path in the working directory, for processes elsewhere."""
    return Folder(path).address


OmegaConf.register_resolver("here", _here, replace=True)
OmegaConf.register_resolver("in_run_folder", _in_run_folder, replace=True)
OmegaConf.register_resolver("beside_run_folder", _beside_run_folder, replace=True)

SHIPPED = Path(__file__).resolve().parent.parent / "conf"
DEFAULT = "embedded"


@dataclass(frozen=True)
class RunSettings:
    """Which run this is and where it leaves its results."""

    name: str = "embedded"
    # the folder under runs/ and the name in logs
    storage: str | None = None
    # a local path or s3://bucket/prefix; runs/<name> in the working directory when not given
    seed: int = field(default=0, metadata={"ge": 0, "lt": 2**32})
    # every random choice of the run follows from it
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    # who shows the curves besides metrics.jsonl: tensorboard | wandb | mlflow | trackio | package.module:Class

    def check(self) -> None:
        trackers.check(self.trackers)
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r} and must be usable as a folder's name")

    @property
    def folder(self) -> Folder:
        """Where the run leaves its results; the address is absolute, as Ray's jobs need it."""
        return Folder(self.storage or f"runs/{self.name}")


@dataclass(frozen=True)
class Settings:
    """Everything that a run can be told."""

    run: RunSettings = field(default_factory=RunSettings)
    cluster: RuntimeSettings = field(default_factory=RuntimeSettings)
    world: WorldSettings = field(default_factory=WorldSettings)
    mix: MixSettings = field(default_factory=MixSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    pictures: PictureSettings = field(default_factory=PictureSettings)
    sft: SftSettings = field(default_factory=SftSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    search: SearchSettings = field(default_factory=lambda: SearchSettings(quota_folder="${beside_run_folder:quota}"))
    reward: RewardSettings = field(default_factory=RewardSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    demo: DemoSettings = field(default_factory=DemoSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)

    def tracking(self, stage: str) -> Tracking:
        """What the metrics of a stage are shown with, and under which name."""
        plain = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return Tracking(tuple(self.run.trackers), f"{self.run.name}/{stage}", plain)


def load(source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a file (a shipped configuration's name, what a file holds; `embedded` when None) with overrides
    applied.

    Raises cluster.errors.UserError.
    """
    return config.load(Settings, DEFAULT if source is None else source, overrides, shipped=SHIPPED)
