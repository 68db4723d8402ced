"""A model folder with other bounds for its pictures: its processor's files rewritten, everything else linked.

The folder is the one source of what a picture becomes: vLLM, the renderer and the learner read the same files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from actors.model.settings import PictureSettings
from cluster.errors import UserError
from cluster.once import made_once

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # transformers' names for the same numbers


def pixel_bounds(content: dict[str, Any]) -> PictureSettings:
    """What a processor's file says; None for what it leaves to its class."""
    inner = content.get("image_processor", content)
    size = inner.get("size") or {}
    said = {name: inner.get(name) or size.get(edge) for name, edge in _EDGES.items()}
    return PictureSettings(**{name: int(value) if value else None for name, value in said.items()})


def bounded(folder: Path, wanted: PictureSettings, cache: Path) -> Path:
    """`folder` itself if it has these bounds already, else one below `cache` that has them.

    Raise `UserError` when its own bounds and those that are wanted leave no picture.
    """
    changed = {}
    for name in PROCESSOR_FILES:
        if (folder / name).is_file() and (text := _with(name, folder, wanted)) is not None:
            changed[name] = text
    if not changed:
        return folder

    def write(part: Path) -> None:
        for file in folder.iterdir():
            if file.name not in changed:
                (part / file.name).symlink_to(file.resolve())
        for name, text in changed.items():
            (part / name).write_text(text)

    return made_once(cache / f"{folder.name}-{_name(folder, changed)}", write)


def _with(name: str, folder: Path, wanted: PictureSettings) -> str | None:
    """The file's new text; None when it stays as it is."""
    content = json.loads((folder / name).read_text())
    if name == PROCESSOR_FILES[1] and "image_processor" not in content:
        return None  # which is in the other file then
    said = pixel_bounds(content)
    if said.given | wanted.given == said.given:
        return None
    both = PictureSettings(**said.given | wanted.given)
    try:
        both.check()
    except ValueError as error:
        raise UserError(
            f"The image processor of {folder} cannot have these bounds for its pictures: {error}."
        ) from None
    inner = content.get("image_processor", content)
    inner.update(wanted.given)
    if isinstance(inner.get("size"), dict):
        inner["size"] |= {edge: value for name, edge in _EDGES.items() if (value := getattr(wanted, name)) is not None}
    return json.dumps(content, indent=2)


def _name(folder: Path, changed: dict[str, str]) -> str:
    """Another for each state of the folder, as links to what is gone would lead nowhere."""
    facts = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return hashlib.sha256(json.dumps([str(folder.resolve()), facts, changed]).encode()).hexdigest()[:16]
