"""Nodes join a real Ray cluster while a run lasts, and are taken away from it: the run grows and shrinks with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]


def test_a_run_grows_onto_nodes_that_join_and_goes_on_without_those_that_leave(tmp_path):
    """In a process of its own: this one may be connected to another cluster."""
    said, result = tmp_path / "said", tmp_path / "result.json"
    with said.open("w") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.slow.workflows.growing_cluster", str(result)],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=550, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert ended.returncode == 0, said.read_text()[-4000:]
    found = json.loads(result.read_text())
    assert found["alone"] == [1]
    assert len(found["left"]) == 2
    assert found["samplers"] == ["sampler-0"]  # what was on offer when the run ended is gone
    assert found["reissued"] > 0
    assert (found["twice"], found["masked"], found["books"]) == (0, 0, True)
    assert found["stale"] <= 1
