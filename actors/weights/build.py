"""The learner's end of the transport that a configuration names."""

from __future__ import annotations

from pathlib import Path

from actors.weights.buckets import ObjectStoreTransport, StorageTransport
from actors.weights.settings import PublishSettings
from actors.weights.transport import FolderTransport, WeightTransport


def build_transport(settings: PublishSettings, root: Path, config_from: Path | None = None) -> WeightTransport:
    """`root` is the folder of this run in shared memory, `config_from` the model that is published.

    Raise UserError for an address that is none. `nccl` has no sender of its own here: see `nccl.py`.
    """
    bucket_bytes = settings.bucket_mib << 20
    if settings.transport == "shared_memory":
        return FolderTransport(root, config_from)
    if settings.transport == "object_store":
        return ObjectStoreTransport(bucket_bytes)
    if settings.transport == "storage":
        return StorageTransport(settings.address, bucket_bytes)
    raise ValueError(f"transport {settings.transport} is not built from its settings alone")
