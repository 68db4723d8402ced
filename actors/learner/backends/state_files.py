"""Which files the checkpoint of what is trained has, and whether they are there.

    state.json                steps made, how many parts there are, and how many ranks wrote them
    part-00000.safetensors    parameters and their optimizer's moments
    rng-00000.safetensors     torch's random numbers, one file a rank

`trained_state.py` writes and reads them. Here is no torch, for who only looks.
"""

from __future__ import annotations

from cluster.storage import Folder

STATE_FILE = "state.json"


def part_file(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def missing_files(folder: Folder) -> list[str]:
    """What `save_state` has written on some rank and cannot be seen from here. Raise OSError."""
    found = folder.sizes()
    if STATE_FILE not in found:
        return [STATE_FILE]
    state = folder.read_json(STATE_FILE)
    named = [*map(part_file, range(state["parts"])), *map(rng_file, range(state["ranks"]))]
    return [name for name in named if name not in found]
