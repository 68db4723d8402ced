"""What this machine has, as a container sees it: cores, memory, shared memory, disk, GPUs.

Limits of cgroups (v2 and v1) and the affinity mask count, because a container that is given two cores of 64
has two. Sizes are bytes. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


def cores() -> int:
    """Whole cores that this process may use, at least one."""
    count = len(os.sched_getaffinity(0))
    quota = cpu_quota(_CGROUP)
    return max(1, min(count, int(quota)) if quota is not None else count)


def cpu_quota(root: Path) -> float | None:
    """The cores that a cgroup below `root` allows; None without a limit."""
    if words := _read(root / "cpu.max").split():
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota, period = _read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def memory() -> int:
    """Bytes that this process and its neighbours in the container may use together."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit(_CGROUP)
    return total if limit is None else min(total, limit)


def memory_limit(root: Path) -> int | None:
    """The limit of a cgroup below `root`, bytes; None without one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(root / name)
        if text and text != "max" and int(text) < _UNLIMITED:
            return int(text)
    return None


def shm_free() -> int | None:
    """Free bytes of shared memory; None where there is no /dev/shm."""
    return disk_free("/dev/shm") if Path("/dev/shm").is_dir() else None


def disk_free(path: str | os.PathLike[str]) -> int:
    """Free bytes where `path` is, or where it would be made."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def tmp_folder() -> str:
    """Where Ray keeps its sessions."""
    return os.environ.get("RAY_TMPDIR", tempfile.gettempdir())


@functools.cache
def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that this process may see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    names = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(names if visible is None else names[: len(visible.split(","))])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
