"""Where a run keeps what: the only place that knows the names inside a run's folder.

world/    the embedded web                 blobs/    pictures by content
base/     the base model                   pretrain/ how it was made: checkpoint, metrics
dataset/  questions/{train,test}, sft      sft/      checkpoints, metrics, export
grpo/     see workflows/grpo/run.py        evaluate/
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from actors.model.images import BlobImages
from cluster.blobs import BlobStore
from cluster.storage import Folder


@dataclass(frozen=True)
class RunFolder:
    """A run's folder by its parts; local or on s3://."""

    root: Folder

    @classmethod
    def at(cls, address: str) -> RunFolder:
        return cls(Folder(address))

    @property
    def world(self) -> Folder:
        return self.root / "world"

    @property
    def base(self) -> Folder:
        return self.root / "base"

    @property
    def pretrain(self) -> Folder:
        return self.root / "pretrain"

    @property
    def dataset(self) -> Folder:
        return self.root / "dataset"

    def questions(self, split: str) -> Folder:
        """Parquet shards of the questions of a split: train or test."""
        return self.root / f"dataset/questions/{split}"

    @property
    def conversations(self) -> Folder:
        """Parquet shards of the conversations for SFT."""
        return self.root / "dataset/sft"

    @property
    def sft(self) -> Folder:
        return self.root / "sft"

    @property
    def sft_export(self) -> Folder:
        return self.root / "sft/export"

    def images(self) -> BlobImages:
        """The run's pictures, from every node: read and written in its folder, with a cache here if that is remote."""
        behind = self.root / "blobs"
        if behind.is_local:
            return BlobImages(BlobStore(behind.local_path))
        return BlobImages(BlobStore(Path(tempfile.gettempdir()) / f"mmsearch-blobs-{os.getuid()}", behind))
