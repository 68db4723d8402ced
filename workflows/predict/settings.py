"""How the agent is run over a dataset. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

AT_LEAST_ONE = {"ge": 1}
NOT_NEGATIVE = {"ge": 0}


@dataclass(frozen=True)
class PredictSettings:
    """Engines, episodes at a time, and how often what has ended is written down."""

    actors: int = field(default=1, metadata=AT_LEAST_ONE)
    # each has one engine and its own tools
    actor_cpus: float = field(default=1.0, metadata={"gt": 0.0})
    # Ray CPUs reserved by one actor; reading takes half a CPU besides
    actor_gpus: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # GPUs of one engine: its tensor_parallel_size
    concurrency: int = field(default=32, metadata=AT_LEAST_ONE)
    # episodes at a time in one actor; as many rows again wait there, so that a slow one leaves no place empty
    temperature: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # 0: greedy, as `mmsearch ask`
    retries: int = field(default=2, metadata=NOT_NEGATIVE)
    # times an episode that the infrastructure spoilt is played again, before it is left to the next start
    save_every_s: float = field(default=1.0, metadata=NOT_NEGATIVE)
    # seconds that a row which has ended may wait to be written with others; what a crash costs besides those under way
    pictures_in: str | None = None
    # folder, local or s3://, that the pictures' paths are relative to; the questions' own when not given
    pictures_mib: int = field(default=512, metadata=AT_LEAST_ONE)
    # MiB of pictures that one actor keeps beyond those of its running episodes
    rows_per_file: int = field(default=100_000, metadata=AT_LEAST_ONE)
    # where --out is a folder
    ready_timeout_s: float = field(default=600.0, metadata={"gt": 0.0})
    # seconds for engines to start
