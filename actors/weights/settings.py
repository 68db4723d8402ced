"""How published weights travel. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Transport: TypeAlias = Literal["shared_memory", "object_store", "storage", "nccl"]


@dataclass(frozen=True)
class PublishSettings:
    """The way from the learner to the samplers."""

    transport: Transport = "shared_memory"
    # shared_memory: learner and samplers on one node; object_store: Ray's, any nodes; storage: a directory that all
    # nodes mount, or s3://; nccl: GPU to GPU by vLLM's own engine
    address: str = ""
    # of storage: where versions go, a directory or s3://bucket/prefix
    bucket_mib: int = field(default=256, metadata={"ge": 1})
    # MiB of one object or one file of storage; the learner holds two such buckets, or one larger tensor

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.transport == "storage" and not self.address:
            raise ValueError(
                "transport storage needs an address: a directory that all nodes mount, or s3://bucket/prefix"
            )
        if self.transport != "storage" and self.address:
            raise ValueError(f"transport {self.transport} has no address, only storage has")
