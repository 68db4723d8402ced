"""What a dataset is made of. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workflows.embedded.teacher import StyleSettings

AT_LEAST_ONE = {"ge": 1}
NOT_NEGATIVE = {"ge": 0}


@dataclass(frozen=True)
class DatasetSettings:
    """Questions to train and test on, and conversations for SFT."""

    source: str = "workflows.embedded.source:EmbeddedSource"
    # "package.module:Class" of workflows/dataset/source.py's Source; FVQA's files: workflows.dataset.fvqa:ParquetSource
    kwargs: dict[str, Any] = field(default_factory=dict)
    # given to the source's class, after the settings
    train_questions: int = field(default=4000, metadata=NOT_NEGATIVE)
    # to be asked in GRPO; 0: none
    test_questions: int = field(default=500, metadata=NOT_NEGATIVE)
    # held out for evaluation
    conversations: int = field(default=3000, metadata=NOT_NEGATIVE)
    # for SFT, half of them search-free; both papers' teachers are filtered to about ten thousand
    style: StyleSettings = field(default_factory=StyleSettings)
    # how clumsy the embedded world's teacher is
    surplus: float = field(default=1.25, metadata={"ge": 1.0})
    # questions played per conversation kept: wrong ones are filtered out
    shards: int = field(default=4, metadata=AT_LEAST_ONE)
    # Parquet files of each part
    embed_images: bool = True
    # pictures inside the rows, as FVQA has them; else by content in the run's blobs alone
    actors: int = field(default=2, metadata=AT_LEAST_ONE)
    # of the pool that plays the teacher's episodes
    actor_cpus: float = field(default=0.5, metadata={"gt": 0.0})
    # Ray CPUs of one; the rest must leave room for reading and writing
    batch: int = field(default=64, metadata=AT_LEAST_ONE)
    # units of a source that one call of an actor takes, played concurrently
