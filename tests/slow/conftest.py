"""One miniature of the whole pipeline for all slow tests: they look at it, or go on from a copy of its parts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.slow.commands import Command

MADE_BEFORE_GRPO = ("world", "base", "dataset", "sft/export", "blobs")
PATIENCE_S = 1400.0  # a busy machine needs minutes more than a quiet one


@dataclass(frozen=True)
class Miniature:
    """What `mmsearch demo --config miniature` left, and how long it took."""

    folder: Path
    seconds: float


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """Made once, also for several processes that share the tests: the first makes it, the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "miniature"
    root.mkdir(exist_ok=True)
    made = root / "made.json"
    with FileLock(root / "lock", timeout=PATIENCE_S):
        if not made.exists():
            words = ["demo", "--config", "miniature", f"run.storage={root / 'run'}", f"run.name=slow-{os.getpid()}"]
            with Command(root / "log", *words) as demo:
                demo.ends_with(0, PATIENCE_S)
                made.write_text(json.dumps(demo.seconds))
    return Miniature(root / "run", json.loads(made.read_text()))


@pytest.fixture
def prepared(miniature: Miniature, tmp_path: Path) -> Callable[[str], Path]:
    """Makes run folders that are ready for `mmsearch grpo`: copies of what the miniature had made before it."""

    def copy(name: str) -> Path:
        for part in MADE_BEFORE_GRPO:
            shutil.copytree(miniature.folder / part, tmp_path / name / part)
        return tmp_path / name

    return copy
