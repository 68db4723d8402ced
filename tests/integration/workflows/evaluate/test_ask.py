"""`mmsearch ask` as a person types it, on a real engine and the real embedded web."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)


def ask(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workflows.cli", "ask", "--config", str(config), *words]
    root = Path(__file__).resolve().parents[4]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment, timeout=380)


@pytest.mark.slow  # an engine of its own, from a shell
def test_an_example_is_asked_and_the_whole_of_it_is_one_json_document(config, run_root):
    done = ask(config, "--example", "1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == str(run_root / "grpo/export")  # the newest stage
    assert told["question"]
    assert len(told["images"]) == 1
    assert told["steps"][0]["turn"] == 1
    assert told["ending"] in ("answered", "gave_up", "out_of_turns", "out_of_tokens", "failed")
    assert (run_root / "examples/1.png").read_bytes().startswith(b"\x89PNG")
    assert "example 1" in done.stderr
