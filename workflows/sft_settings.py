"""How the policy is fine-tuned on conversations. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    freeze_vision: bool = False
    # leave the vision tower as it is (DeepMMSearch-R1 does; a tiny model still learns to see)
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
