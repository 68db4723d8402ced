"""What a run is planned for: the size of a GPU, how many a node has, how many nodes there are."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from workflows.capacity.memory import GIB

DEFAULT_GPU_GIB = 80.0  # the papers' H100


@dataclass(frozen=True)
class Hardware:
    """Sizes in bytes."""

    gpu: int
    gpus_per_node: int = 8
    cpus_per_node: float | None = None  # None: not known, and not judged
    nodes: int | None = None  # None: as many as are needed
    host: int | None = None  # memory of a node; None: not known, and not judged
    shm: int | None = None  # of that, what /dev/shm may have; None: not known, and not judged
    reserve: int = 2 * GIB  # of each GPU, for what is not counted


def gpu_gib() -> float | None:
    """GiB of the smallest NVIDIA GPU here; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [float(line) for line in listed.stdout.split() if line.replace(".", "", 1).isdigit()]
    return min(sizes) / 1024 if sizes else None
