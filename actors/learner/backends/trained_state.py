"""What is trained, as a checkpoint holds it: whole fp32 tensors by name, whoever held which piece of them.

Its parts (`state_files.py`) hold master/<name>, exp_avg/<name> and so on, of as many neighbouring parameters as a part
takes.

An engine says which piece of each parameter this rank holds (`Piece`); everything else is here, so a checkpoint does
not depend on the number of ranks nor on how they share the work: a run may go on with other ones. Parts are written in
turn by all ranks, and no rank ever has more than one part whole. A rank reads of every part what it holds itself, from
wherever it lies: together the ranks of a partitioned engine read a checkpoint once.

Always true: all ranks go through the same collectives, also when one of them cannot write or read; then all raise.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.backends.state_files import STATE_FILE, part_file, rng_file
from actors.weights.manifest import tensor_places
from cluster.errors import UserError
from cluster.storage import Folder

Item = TypeVar("Item")

if TYPE_CHECKING:
    from actors.learner.backends.ranks import Ranks

PART_BYTES = 512 << 20  # of one part, or one parameter that has more
READ_BYTES = 64 << 20  # asked for at once, or one piece that has more
READ_GAP = 4 << 20  # bytes of others' that are read along, because another request would take longer
FP32_BYTES = 4
MASTER = "master"
ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class Piece:
    """What this rank holds of one trained parameter.

    `values` are flat fp32 views into the engine's own memory, by kind: the master weight and the optimizer's moments.
    All are [n], the elements start to start + n of the flat parameter; n is 0 where this rank has none of it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """Elements of the whole parameter."""
        return int(torch.Size(self.shape).numel())


def save_state(folder: Path, pieces: Sequence[Piece], steps: int, ranks: Ranks, *, partitioned: bool) -> None:
    """Write a checkpoint that all ranks share. `partitioned`: pieces of several ranks make up a parameter.

    Raise OSError on every rank when any could not write.
    """
    here = Folder(folder)
    parts = list(neighbours(pieces, _n_bytes, PART_BYTES))

    def write() -> None:
        here.write_bytes(rng_file(ranks.rank), _encoded(_rng_state()))
        if ranks.rank == 0:
            here.write_text(STATE_FILE, json.dumps({"steps": steps, "parts": len(parts), "ranks": ranks.world}))

    failure = _attempt(write)
    for number, part in enumerate(parts):
        mine = number % ranks.world == ranks.rank
        if not (mine or partitioned):
            continue
        whole = _gathered(part, ranks, partitioned)
        if mine and failure is None:
            tensors = {f"{kind}/{piece.name}": value for piece, kind, value in whole}
            failure = _attempt(lambda n=number, t=tensors: here.write_bytes(part_file(n), _encoded(t)))
    number = (getattr(failure, "errno", None) or errno.EIO) if failure else 0
    worst = int(ranks.largest([float(number)])[0])
    if failure:
        raise failure
    if worst:  # told alike everywhere, as the first rank to answer is the one that is heard
        raise OSError(worst, f"{os.strerror(worst)}, on another rank of the learner")


def load_state(folder: Folder, pieces: Sequence[Piece], ranks: Ranks) -> int:
    """Fill every piece from what `save_state` wrote, and was put into this folder; returns the steps made.

    Raise UserError on every rank when any found the checkpoint missing, damaged, or of another model.
    """
    steps = 0

    def read() -> None:
        nonlocal steps
        state = folder.read_json(STATE_FILE)
        _fill(folder, pieces, int(state["parts"]))
        own, first = rng_file(ranks.rank), rng_file(0)
        # a rank that was not there before draws as the first one
        _set_rng_state(folder.read_bytes(own if folder.exists(own) else first))
        steps = int(state["steps"])

    failure = _attempt(read)
    if ranks.largest([float(failure is not None)])[0]:
        told = failure or "another rank of the learner could not read it"
        raise UserError(f"The checkpoint {folder} cannot be loaded: {told}") from failure
    return steps


def saved_steps(folder: Folder) -> int:
    """The optimizer steps that a checkpoint has behind it. Raise UserError when there is none."""
    try:
        return int(folder.read_json(STATE_FILE)["steps"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The checkpoint {folder} cannot be loaded: {error}") from error


def start_moments(optimizer: torch.optim.Optimizer, masters: Sequence[Tensor], steps: int) -> None:
    """Give AdamW a state for each master tensor, as if it had made `steps` steps; the moments are filled later."""
    for master in masters:
        state: dict[str, Any] = optimizer.state[master]
        if steps == 0:
            state.clear()
            continue
        for kind in ADAMW_MOMENTS:
            state.setdefault(kind, torch.zeros_like(master, memory_format=torch.preserve_format))
        state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=master.device)


@dataclass(frozen=True, eq=False)
class _Stretch:
    """Bytes `start` to before `end` of a part, and the flat fp32 view of this rank's that they belong in."""

    start: int
    end: int
    values: Tensor


def _fill(folder: Folder, pieces: Sequence[Piece], parts: int) -> None:
    wanted = {f"{kind}/{piece.name}": (piece, kind) for piece in pieces for kind in piece.values}
    sizes = folder.sizes()
    for part in map(part_file, range(parts)):
        read = partial(folder.read_bytes, part)
        mine: list[_Stretch] = []
        for name, (dtype, shape, first, _) in tensor_places(read, sizes.get(part, 0), part).items():
            if name not in wanted:
                raise ValueError(f"it is of a model that is trained in other parts, as {name} shows")
            piece, kind = wanted.pop(name)
            if (dtype, shape) != ("F32", piece.shape):
                raise ValueError(f"{name} is {dtype} {shape} there and F32 {piece.shape} here")
            start, values = first + FP32_BYTES * piece.start, piece.values[kind]
            if len(values):
                mine.append(_Stretch(start, start + FP32_BYTES * len(values), values))
        for run in _runs(mine):
            read_at = run[0].start
            data = torch.frombuffer(bytearray(read(read_at, run[-1].end)), dtype=torch.float32)
            for one in run:
                one.values.copy_(data[(one.start - read_at) // FP32_BYTES : (one.end - read_at) // FP32_BYTES])
    if wanted:
        raise ValueError(f"it is of a model that is trained in other parts, as {min(wanted)} shows")


def _runs(stretches: Iterable[_Stretch]) -> Iterator[list[_Stretch]]:
    """In order; those of a run are read at once."""
    run: list[_Stretch] = []
    for one in sorted(stretches, key=lambda one: one.start):
        if run and (one.start - run[-1].end > READ_GAP or one.end - run[0].start > READ_BYTES):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _gathered(part: Sequence[Piece], ranks: Ranks, partitioned: bool) -> Iterator[tuple[Piece, str, Tensor]]:
    """Whole parameters on the CPU, by piece and kind. The collective, where there is one, is made at once."""
    kinds = [(piece, kind) for piece in part for kind in piece.values]
    sizes = [piece.size for piece, _ in kinds]
    first = next(iter(part[0].values.values()))
    buffer = torch.zeros(sum(sizes), dtype=torch.float32, device=first.device)
    slots = buffer.split(sizes)
    for (piece, kind), slot in zip(kinds, slots, strict=True):
        mine = piece.values[kind]
        slot[piece.start : piece.start + len(mine)] = mine
    if partitioned and ranks.world > 1:
        dist.all_reduce(buffer)  # zeros but for the one rank that holds an element: exact
    return ((piece, kind, slot.view(piece.shape).cpu()) for (piece, kind), slot in zip(kinds, slots, strict=True))


def neighbours(items: Iterable[Item], n_bytes: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """In order, of at most `limit` bytes together or one alone. The same cut on every rank."""
    part: list[Item] = []
    size = 0
    for item in items:
        more = n_bytes(item)
        if part and size + more > limit:
            yield part
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield part


def _n_bytes(piece: Piece) -> int:
    return FP32_BYTES * piece.size * len(piece.values)


def _attempt(work: Callable[[], None]) -> Exception | None:
    """What went wrong, kept for later: the other ranks wait in a collective for this one."""
    from safetensors import SafetensorError

    try:
        work()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserError) as error:
        return error
    return None


def _encoded(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _rng_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_rng_state(saved: bytes) -> None:
    from safetensors.torch import load

    states = load(saved)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
