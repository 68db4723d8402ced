"""infra/setup.sh says what is wrong in one sentence, before it touches anything. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def command(checkout: Path, name: str, script: str) -> Path:
    """A command that stands before the real one of that name."""
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def start(checkout: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(checkout / "infra/setup.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, **environ},
    )


def test_an_old_python_is_named(checkout: Path):
    old = command(checkout, "old-python", 'case "$1" in -V) echo "Python 3.9.2";; *) exit 1;; esac')
    done = start(checkout, PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.startswith("setup: Python 3.11 to 3.14 is needed and ")
    assert "is Python 3.9.2; install one" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_python_without_venv_is_told_which_package_is_missing(checkout: Path):
    bare = command(checkout, "bare-python", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    done = start(checkout, PYTHON=str(bare))
    assert done.returncode == 2
    assert "has no venv module; install it (apt-get install python3-venv)" in done.stderr


def test_a_full_disk_is_told_before_anything_is_made(checkout: Path):
    command(checkout, "df", "printf 'a b c d\\nx 9000 8000 1000 89%% /\\n'")
    done = start(checkout)
    assert done.returncode == 2
    assert "has 1000 MiB free and the environment needs 7000" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_torch_that_pip_finds_nowhere_is_one_sentence(checkout: Path):
    # An interpreter that makes an environment whose pip finds nothing.
    found_nowhere = '#!/bin/sh\\ncase "$*" in *"-m pip"*) exit 1;; *) exit 0;; esac\\n'
    command(
        checkout,
        "python-x",
        f"""case "$*" in
        "-m venv "*) mkdir -p "$3/bin"; printf '{found_nowhere}' > "$3/bin/python"; chmod +x "$3/bin/python";;
        -V) echo "Python 3.11.0";;
        esac""",
    )
    done = start(checkout, PYTHON="python-x", MMSEARCH_TORCH_INDEX="http://127.0.0.1:1")
    assert done.returncode == 2, done
    assert "pip finds torch==" in done.stderr
    assert "nor at http://127.0.0.1:1" in done.stderr
    assert not (checkout / ".venv/.ready").exists()
