"""The examples of the service's README do what it says, as they stand there, at another port and with another model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow.workflows.serve.conftest import Service

README = Path(__file__).resolve().parents[4] / "workflows" / "serve" / "README.md"
WITHIN_S = 120.0
pytestmark = pytest.mark.slow


def block(kind: str) -> str:
    """The first code block of a kind."""
    found = re.search(rf"^```{kind}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {kind} block"
    return found[1]


def at(service: Service, text: str) -> str:
    """The text for this service."""
    assert "http://127.0.0.1:8000" in text
    return text.replace("http://127.0.0.1:8000", service.url).replace('"embedded"', '"miniature"')


def ran(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, and this machine has none")
def test_the_command_of_the_first_block_is_answered(service: Service):
    lines = block("sh").splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.startswith("curl "))  # it goes on to the end of the block
    answer = json.loads(ran("bash", "-euo", "pipefail", "-c", at(service, "".join(lines[first:]))))
    assert "choices" in answer, answer
    assert answer["choices"][0]["message"]["content"].strip()


def test_the_program_prints_steps_and_an_answer(service: Service):
    *steps, answer = ran(sys.executable, "-c", at(service, block("python"))).splitlines()
    assert answer.strip()
    assert "'type': 'turn'" in steps[0]
