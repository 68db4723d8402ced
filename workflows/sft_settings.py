"""How the policy is fine-tuned on conversations. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.learner.settings import LoraSettings, Part
from workflows.supervised import AT_LEAST_ONE, NOT_NEGATIVE, SupervisedSettings


@dataclass(frozen=True)
class SftSettings(SupervisedSettings):
    """Supervised fine-tuning on the teacher's conversations; only what the policy itself said is learned."""

    steps: int = field(default=500, metadata=AT_LEAST_ONE)
    # optimizer steps
    batch: int = field(default=32, metadata=AT_LEAST_ONE)
    # conversations of one step, over all ranks
    start_from: str | None = None
    # model folder, local or s3://; the run's base model when not given
    conversations: str | None = None
    # folder of Parquet shards, local or s3://; those of the run's dataset when not given
    max_length: int = field(default=8192, metadata=AT_LEAST_ONE)
    # expanded tokens; a longer conversation is left out
    freeze: list[Part] = field(default_factory=list)
    # parts that stay as they are: vision (the tower without its projector), projector (DeepMMSearch-R1 leaves both; a
    # tiny model still learns to see). With lora all but the adapters
    lora: LoraSettings | None = None
    # low-rank adapters in place of the weights themselves (DeepMMSearch-R1: rank 8), exported merged
    ranks: int = field(default=1, metadata=AT_LEAST_ONE)
    # processes of Ray Train
    rank_cpus: float = field(default=1.0, metadata={"gt": 0.0})
    # Ray CPUs of one
    rank_gpus: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # GPUs of one
    max_failures: int = field(default=2, metadata=NOT_NEGATIVE)
    # times that dead ranks are started again from the last checkpoint
    keep_checkpoints: int = field(default=2, metadata=AT_LEAST_ONE)
    # newest ones that stay on storage

    def check(self) -> None:
        super().check()
        if self.batch < self.ranks:
            raise ValueError(f"batch is {self.batch} and must be at least ranks={self.ranks}")
        if self.lora is not None and self.optimizer == "muon":
            raise ValueError("optimizer muon is for whole matrices: lora needs adamw")
