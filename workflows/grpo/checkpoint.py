"""Checkpoints of a GRPO run: everything that continues it, written so that a torn one is never taken for a whole one.

    checkpoints/step-000020-00/
      controller.json    step, version, buffer, cursor, totals, and what the run was configured to be
      groups.parquet     the finished groups' trajectories, one row each
      learner/           the learner's own state (weights, optimizer, RNG)
      COMPLETE.json      last: the size of every file, and the digest of the first two

A folder without its marker, or whose files are not as the marker says, is passed over for the one before, and
that is said. What storage refused while it was written is deleted, since a disk that is full needs the room; the one
before stays. The controller has no RNG: the order of questions is a hash, and the engines draw for themselves.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.agent.trajectory import Trajectory
from actors.learner.backends.state_files import missing_files
from cluster.errors import UserError
from cluster.storage import Folder
from cluster.storage_failures import reason_of
from workflows.grpo.evaluation_state import EvaluationState
from workflows.grpo.ports import ControllerState
from workflows.grpo.prompts_cursor import CursorState
from workflows.grpo.records import trajectory_from, trajectory_to
from workflows.grpo.work_buffer import BufferState, GroupId
from workflows.identity import changes

MARKER = "COMPLETE.json"
CONTROLLER = "controller.json"
GROUPS = "groups.parquet"
LEARNER = "learner"
PREFIX = "step-"
GROUP_SCHEMA = pa.schema([("group", pa.int64()), ("masked", pa.int32()), ("trajectory", pa.large_string())])

SaveLearner = Callable[[Folder], Awaitable[None]]


@dataclass(frozen=True, eq=False)
class SavedGroup:
    """A finished group with its payloads."""

    id: GroupId
    trajectories: tuple[Trajectory, ...]
    masked: int = 0


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A whole checkpoint. The learner reads its own part from `folder / "learner"`."""

    folder: Folder
    state: ControllerState
    groups: tuple[SavedGroup, ...]


class TornCheckpoint(Exception):
    """A checkpoint that is not as its writer left it."""


class UnfinishedCheckpoint(TornCheckpoint):
    """A checkpoint whose writer was ended: what came before it is still there, unless it was the first."""


class CheckpointStore:
    """The checkpoints of one run. `identity`: plain values by key that must not change between its parts."""

    def __init__(self, folder: Folder, identity: Mapping[str, Any], keep: int, say: Callable[[str], None]) -> None:
        self._folder, self._identity, self._keep, self._say = folder, dict(identity), keep, say

    async def write(self, state: ControllerState, groups: Sequence[SavedGroup], save_learner: SaveLearner) -> Folder:
        """All or nothing, the marker last; older ones than the newest `keep` are deleted after that.

        Raise OSError when storage refuses, and UserError when what ranks wrote is not here; those before are as they
        were.
        """
        folder = self._folder / await asyncio.to_thread(self._free_name, state.step)
        try:
            await save_learner(folder / LEARNER)
            await asyncio.to_thread(self._finish, folder, state, groups)
        except (OSError, UserError):
            await asyncio.to_thread(self._discard, folder)
            raise
        await asyncio.to_thread(self._prune, folder)
        return folder

    def latest(self) -> Checkpoint | None:
        """The newest whole one; None when the run has none yet, for its first one was never finished, too.

        Raise `UserError` when there are checkpoints but none is whole, or when the configuration differs.
        """
        names, damaged = self._names(), 0
        for name in reversed(names):
            folder = self._folder / name
            try:
                data = _checked(folder)
                state, groups = _state(data), _groups(folder)
            except (TornCheckpoint, KeyError, TypeError, ValueError, pa.ArrowException) as error:
                self._say(f"checkpoint {name} is not whole ({error}): going back to what was before it")
                damaged += not isinstance(error, UnfinishedCheckpoint)
                continue
            self._compare(name, data["identity"])
            return Checkpoint(folder, state, groups)
        if damaged:
            raise UserError(
                f"none of the {len(names)} checkpoints in {self._folder} is whole: delete the folder to start anew."
            )
        return None

    def _names(self) -> list[str]:
        return [name for name in self._folder.list() if name.startswith(PREFIX)]

    def _free_name(self, step: int) -> str:
        """Of a folder that does not exist: a step may be saved again, and the earlier one stays whole meanwhile."""
        stem = f"{PREFIX}{step:06d}-"
        taken = [int(name.removeprefix(stem)) for name in self._names() if name.startswith(stem)]
        return f"{stem}{max(taken, default=-1) + 1:02d}"

    def _finish(self, folder: Folder, state: ControllerState, groups: Sequence[SavedGroup]) -> None:
        if missing := missing_files(folder / LEARNER):
            raise UserError(
                f"{folder / LEARNER} lacks {missing[0]}: a learner's rank on another node has it on a disk of its own."
                " All nodes must see the run's folder: run.storage must be a directory that they share, or s3://."
            )
        folder.write_bytes(GROUPS, _groups_bytes(groups))
        folder.write_json(
            CONTROLLER,
            {
                "step": state.step,
                "version": state.version,
                "buffer": state.buffer.to_json(),
                "cursor": state.cursor.to_json(),
                "totals": dict(state.totals),
                "evaluation": state.evaluation.to_json(),
                "identity": self._identity,
            },
        )
        digests = {name: _digest(folder.read_bytes(name)) for name in (CONTROLLER, GROUPS)}
        folder.write_json(MARKER, {"sizes": _sizes(folder), "sha256": digests})

    def _discard(self, folder: Folder) -> None:
        with suppress(OSError):  # without its marker it counts for nothing anyway
            folder.delete(MARKER)
            folder.delete()

    def _prune(self, newest: Folder) -> None:
        """Keep as many as was asked for, of those that are finished; what others left unfinished goes."""
        try:
            names = self._names()
            finished = [name for name in names if (self._folder / name).exists(MARKER)]
            for name in names[: names.index(newest.name)]:
                if name not in finished[-self._keep :]:
                    self._folder.delete(name)
        except OSError as error:
            self._say(f"checkpoints that are not needed any more could not be deleted: {reason_of(error)}")

    def _compare(self, name: str, identity: Mapping[str, Any]) -> None:
        what = changes(identity, json.loads(json.dumps(self._identity)))
        if what:
            raise UserError(
                f"checkpoint {name} belongs to another configuration: {what}."
                f" Set it back, give the run another name, or delete {self._folder} to start anew."
            )


def _checked(folder: Folder) -> dict[str, Any]:
    """The content of controller.json, after every file was found as the marker says."""
    try:
        marker = folder.read_json(MARKER)
    except FileNotFoundError:
        raise UnfinishedCheckpoint("its writer did not finish") from None
    except json.JSONDecodeError:
        raise TornCheckpoint(f"{MARKER} cannot be read") from None
    sizes = _sizes(folder)
    for name, size in marker["sizes"].items():
        if sizes.get(name) != size:
            raise TornCheckpoint(f"{name} has {sizes.get(name, 0)} of {size} bytes")
    for name, digest in marker["sha256"].items():
        if _digest(folder.read_bytes(name)) != digest:
            raise TornCheckpoint(f"{name} was changed")
    return folder.read_json(CONTROLLER)


def _state(data: Mapping[str, Any]) -> ControllerState:
    buffer, cursor = BufferState.from_json(data["buffer"]), CursorState.from_json(data["cursor"])
    evaluation = EvaluationState.from_json(data.get("evaluation"))
    return ControllerState(data["step"], data["version"], buffer, cursor, data["totals"], evaluation)


def _sizes(folder: Folder) -> dict[str, int]:
    return {name: size for name, size in folder.sizes().items() if name != MARKER}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _groups_bytes(groups: Sequence[SavedGroup]) -> bytes:
    rows = [
        {
            "group": int(group.id),
            "masked": group.masked,
            "trajectory": json.dumps(trajectory_to(trajectory)),
        }
        for group in groups
        for trajectory in group.trajectories
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=GROUP_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _groups(folder: Folder) -> tuple[SavedGroup, ...]:
    rows = pq.read_table(pa.BufferReader(folder.read_bytes(GROUPS))).to_pylist()
    by_group: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row)
    return tuple(
        SavedGroup(
            id=GroupId(group),
            trajectories=tuple(trajectory_from(json.loads(row["trajectory"])) for row in rows),
            masked=rows[0]["masked"],
        )
        for group, rows in by_group.items()
    )
