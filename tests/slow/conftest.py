"""One miniature of the whole pipeline for all slow tests: they look at it, or go on from a copy of its parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slow.commands import Command

MADE_BEFORE_GRPO = ("world", "base", "dataset", "sft/export", "blobs")


@dataclass(frozen=True)
class Miniature:
    """What `mmsearch demo --config miniature` left and said."""

    folder: Path
    said: str
    seconds: float


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    root = tmp_path_factory.mktemp("miniature")
    words = ["demo", "--config", "miniature", f"run.storage={root / 'run'}", f"run.name=slow-{root.name}"]
    with Command(root / "log", *words) as demo:
        said = demo.ends_with(0, 1400)
        return Miniature(root / "run", said, demo.seconds)


@pytest.fixture
def prepared(miniature: Miniature, tmp_path: Path) -> Callable[[str], Path]:
    """Makes run folders that are ready for `mmsearch grpo`: copies of what the miniature had made before it."""

    def copy(name: str) -> Path:
        for part in MADE_BEFORE_GRPO:
            shutil.copytree(miniature.folder / part, tmp_path / name / part)
        return tmp_path / name

    return copy
