"""One service for the tests of a process: `mmsearch serve` as a person starts it, on the miniature's model."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slow.commands import Command
from tests.slow.conftest import Miniature
from workflows.serve.run import free_port

START_S = 400.0  # an engine beside other tests
SERVED = ("world", "base", "dataset", "sft/export", "grpo/export", "blobs")


@dataclass(frozen=True)
class Service:
    """A service that runs, the folder of its run, and the words that say which run that is."""

    command: Command
    url: str
    folder: Path
    words: tuple[str, ...]

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    @property
    def about(self) -> Any:
        return self.get("/about")


def started(log: Path, folder: Path, *words: str) -> Service:
    """A service on a run's folder; returns when it answers."""
    port = free_port()
    run = ("--config", "miniature", f"run.storage={folder}")
    command = Command(log, "serve", *run, f"serve.port={port}", *words)
    try:
        command.until(lambda: f"http://127.0.0.1:{port}" in command.said, START_S)
    except BaseException:
        with command:  # which leaves nothing behind
            raise
    return Service(command, f"http://127.0.0.1:{port}", folder, run)


@pytest.fixture(scope="session")
def served_run(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a service needs of the miniature."""
    folder = tmp_path_factory.mktemp("served") / "run"
    for part in SERVED:
        shutil.copytree(miniature.folder / part, folder / part)
    return folder


@pytest.fixture(scope="session")
def service(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Ends with Ctrl-C, as a service does."""
    found = started(tmp_path_factory.mktemp("service") / "log", served_run)
    with found.command:
        yield found
        found.command.interrupt()
        found.command.ends_with(0, 120.0)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> str:
    """The address of a service for the tests of its page."""
    given = os.environ.get("MMSEARCH_SERVICE_URL") or request.getfixturevalue("service").url
    return given.rstrip("/") + "/"
