"""What an evaluation is asked to do. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.reward.settings import JudgeSettings
from cluster.storage import check_inside
from workflows.evaluate.arms import ARMS

AT_LEAST_ONE = {"ge": 1}
NOT_NEGATIVE = {"ge": 0}


@dataclass(frozen=True)
class EvaluateSettings:
    """Arms on held-out questions, greedy unless told otherwise."""

    arms: list[str] = field(default_factory=lambda: ["direct", "rag", "sft", "rl"])
    # in the order of the table; the names of workflows/evaluate/arms.py
    dataset: str | None = None
    # folder of Parquet shards, local or s3://; the run's test questions when not given
    folder: str = "evaluate"
    # in the run's folder; another name keeps several evaluations of one run apart
    questions: int = field(default=0, metadata=NOT_NEGATIVE)
    # how many of them, drawn by run.seed; 0: all
    samples: int = field(default=1, metadata=AT_LEAST_ONE)
    # episodes per question and arm; more than one is of use only at a temperature above 0
    temperature: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # 0: greedy
    max_tokens: int = field(default=128, metadata=AT_LEAST_ONE)
    # of one turn
    samplers: int = field(default=1, metadata=AT_LEAST_ONE)
    # vLLM engines, shared by all arms: weights are swapped by publishing
    sampler_cpus: float = field(default=1.0, metadata={"gt": 0.0})
    # Ray CPUs reserved by one engine
    sampler_gpus: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # GPUs of one engine: its tensor_parallel_size
    concurrency: int = field(default=128, metadata=AT_LEAST_ONE)
    # episodes at a time on one engine
    retries: int = field(default=2, metadata=NOT_NEGATIVE)
    # times an episode that the infrastructure spoilt is played again; after that it is counted as failed, not as wrong
    ready_timeout_s: float = field(default=600.0, metadata={"gt": 0.0})
    # start of all actors, and of an engine that is replaced
    update_timeout_s: float = field(default=120.0, metadata={"gt": 0.0})
    # loading of an arm's weights
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    # judged accuracy beside exact match; none unless a model is named

    def check(self) -> None:
        """Raise ValueError for arms that there are not, or none, or the same one twice, or a folder outside."""
        check_inside("folder", self.folder)
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or not self.arms:
            raise ValueError(f"arms is {self.arms} and must name some of {', '.join(ARMS)}")
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms is {self.arms} and must not name an arm twice")
