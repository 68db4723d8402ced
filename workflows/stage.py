"""The bookkeeping of stages: what is done, what may be reused, what it cost. Pure, but for one JSON file per stage.

A stage's fingerprint is the hash of the settings that matter to it, of its version in code, and of the fingerprints of
the stages it builds on: with the same one, its outputs need not be made again. The file `stages/<name>.json` says
`complete` only after everything else was written. How partial outputs are continued, and what happens to outputs of
another configuration, is the stage's own business: each of them knows its checkpoints best.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any

from cluster.storage import Folder


class Due(StrEnum):
    """What is to be done about a stage."""

    REUSED = "reused"  # complete, of the same configuration, and its outputs are there
    CONTINUED = "continued"  # begun with the same configuration
    CHANGED = "changed"  # made or begun with another configuration
    NEW = "new"


@dataclass(frozen=True)
class Stage:
    """A step of the demo: a command of its own."""

    name: str  # also the command's
    run: str  # "package.module:function", called with the settings
    says: str  # what it does, in a few words
    settings: tuple[str, ...]  # dotted paths of the parts of the settings that decide its outputs
    needs: tuple[str, ...] = ()  # stages that it builds on
    outputs: tuple[str, ...] = ()  # in the run's folder; all exist once it is complete
    ray: bool = True  # uses Ray
    refuses: bool = False  # to go on where what it had built on was made anew
    version: int = 1  # raise it when the code makes other outputs from the same settings


@dataclass(frozen=True)
class Marker:
    """What is known of a stage in a run's folder."""

    fingerprint: str
    complete: bool
    seconds: float  # of work, over all parts of a stage that was stopped and continued
    finished_at: float  # unix seconds; of the last part
    outputs: tuple[str, ...]


def fingerprints(stages: Sequence[Stage], settings: Any, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """By stage. `stages` are in order: each comes after those that it needs, or needs one of `before`."""
    found = dict(before or {})
    for stage in stages:
        parts = {path: _plain(_subtree(settings, path)) for path in stage.settings}
        upstream = {name: found[name] for name in stage.needs}
        text = json.dumps([stage.name, stage.version, parts, upstream], sort_keys=True)
        found[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return {stage.name: found[stage.name] for stage in stages}


def remaining(expected: Mapping[str, float], done: Mapping[str, float]) -> float:
    """Seconds that the stages not in `done` will take, from what was expected of all and what the done ones took.

    A machine on which the finished stages took twice as long as expected is believed to be half as fast.
    """
    rest = sum(seconds for name, seconds in expected.items() if name not in done)
    guessed = sum(expected.get(name, 0.0) for name in done)
    pace = sum(done.values()) / guessed if guessed > 0 else 1.0
    return rest * min(max(pace, 0.25), 4.0)


class StageBook:
    """The markers of a run's folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def marker(self, name: str) -> Marker | None:
        """None when there is none, or none that can be read."""
        try:
            raw = self._folder.read_json(f"stages/{name}.json")
            return Marker(**{**raw, "outputs": tuple(raw["outputs"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def due(self, stage: Stage, fingerprint: str) -> Due:
        found = self.marker(stage.name)
        if found is None:
            return Due.NEW
        if found.fingerprint != fingerprint:
            return Due.CHANGED
        there = all(self._folder.exists(output) for output in stage.outputs)
        return Due.REUSED if found.complete and there else Due.CONTINUED

    def mixture(self, stages: Sequence[Stage], marks: Mapping[str, str]) -> str:
        """What would be made anew under a stage that then refuses to go on, in words; "" when nothing would."""
        due = {stage.name: self.due(stage, marks[stage.name]) for stage in stages}
        for stage in stages:
            changed = [name for name in stage.needs if due.get(name) is Due.CHANGED]
            if stage.refuses and due[stage.name] is not Due.NEW and changed:
                return f"{stage.name} was made from another {' and '.join(changed)}"
        return ""

    def spent(self, stage: Stage, fingerprint: str) -> float:
        """Seconds that earlier parts of this very stage took."""
        found = self.marker(stage.name)
        return found.seconds if found and found.fingerprint == fingerprint else 0.0

    def note(self, stage: Stage, fingerprint: str, seconds: float, *, complete: bool) -> None:
        """`seconds`: of all parts. A stage is noted when it begins, so that what it leaves has an owner."""
        marker = Marker(fingerprint, complete, seconds, time.time(), stage.outputs)
        self._folder.write_json(f"stages/{stage.name}.json", asdict(marker))


def _subtree(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def _plain(value: Any) -> Any:
    """As JSON; floats that are whole numbers are those numbers, enums their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return int(value) if isinstance(value, float) and value.is_integer() else value
