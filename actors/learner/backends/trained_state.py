"""What is trained, as a checkpoint holds it: whole fp32 tensors by name, whoever held which piece of them.

    state.json                steps made, and how many parts there are
    part-00000.safetensors    master/<name>, exp_avg/<name>, ...: of as many neighbouring parameters as a part takes
    rng-00000.safetensors     torch's random numbers, one file a rank

An engine says which piece of each parameter this rank holds (`Piece`); everything else is here, so a checkpoint does
not depend on the number of ranks nor on how they share the work: a run may go on with other ones. Parts are written in
turn by all ranks, and no rank ever has more than one part whole.

Always true: all ranks go through the same collectives, also when one of them cannot write or read; then all raise.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import UserError
from cluster.storage import Folder

Item = TypeVar("Item")

if TYPE_CHECKING:
    from actors.learner.backends.ranks import Ranks

STATE_FILE = "state.json"
PART_BYTES = 512 << 20  # of one part, or one parameter that has more
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

    def fill(self, kind: str, whole: Tensor) -> None:
        """Take this rank's elements from the whole parameter of that kind."""
        mine = self.values[kind]
        mine.copy_(whole.reshape(-1)[self.start : self.start + len(mine)])


def save_state(folder: Path, pieces: Sequence[Piece], steps: int, ranks: Ranks, *, partitioned: bool) -> None:
    """Write a checkpoint that all ranks share. `partitioned`: pieces of several ranks make up a parameter.

    Raise OSError on every rank when any could not write.
    """
    here = Folder(folder)
    parts = list(neighbours(pieces, _n_bytes, PART_BYTES))

    def write() -> None:
        here.write_bytes(_rng_file(ranks.rank), _encoded(_rng_state()))
        if ranks.rank == 0:
            here.write_text(STATE_FILE, json.dumps({"steps": steps, "parts": len(parts)}))

    failure = _attempt(write)
    for number, part in enumerate(parts):
        mine = number % ranks.world == ranks.rank
        if not (mine or partitioned):
            continue
        whole = _gathered(part, ranks, partitioned)
        if mine and failure is None:
            tensors = {f"{kind}/{piece.name}": value for piece, kind, value in whole}
            failure = _attempt(lambda n=number, t=tensors: here.write_bytes(_part_file(n), _encoded(t)))
    number = (getattr(failure, "errno", None) or errno.EIO) if failure else 0
    worst = int(ranks.largest([float(number)])[0])
    if failure:
        raise failure
    if worst:  # told alike everywhere, as the first rank to answer is the one that is heard
        raise OSError(worst, f"{os.strerror(worst)}, on another rank of the learner")


def load_state(folder: Path, pieces: Sequence[Piece], ranks: Ranks) -> int:
    """Fill every piece from what `save_state` wrote; returns the steps made.

    Raise UserError on every rank when any found the checkpoint missing, damaged, or of another model.
    """
    steps = 0

    def read() -> None:
        nonlocal steps
        state = json.loads((folder / STATE_FILE).read_text())
        _fill(folder, pieces, int(state["parts"]))
        own, first = folder / _rng_file(ranks.rank), folder / _rng_file(0)
        _set_rng_state(own if own.exists() else first)  # a rank that was not there before draws as the first one
        steps = int(state["steps"])

    failure = _attempt(read)
    if ranks.largest([float(failure is not None)])[0]:
        told = failure or "another rank of the learner could not read it"
        raise UserError(f"The checkpoint {folder} cannot be loaded: {told}") from failure
    return steps


def saved_steps(folder: Path) -> int:
    """The optimizer steps that a checkpoint has behind it. Raise UserError when there is none."""
    try:
        return int(json.loads((folder / STATE_FILE).read_text())["steps"])
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


def _fill(folder: Path, pieces: Sequence[Piece], parts: int) -> None:
    from safetensors import safe_open

    wanted = {f"{kind}/{piece.name}": (piece, kind) for piece in pieces for kind in piece.values}
    for number in range(parts):
        with safe_open(folder / _part_file(number), "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                if name not in wanted:
                    raise ValueError(f"it is of a model that is trained in other parts, as {name} shows")
                piece, kind = wanted.pop(name)
                whole = file.get_tensor(name)
                if tuple(whole.shape) != piece.shape:
                    raise ValueError(f"{name} is {tuple(whole.shape)} there and {piece.shape} here")
                piece.fill(kind, whole)
    if wanted:
        raise ValueError(f"it is of a model that is trained in other parts, as {min(wanted)} shows")


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
    return 4 * piece.size * len(piece.values)


def _attempt(work: Callable[[], None]) -> Exception | None:
    """What went wrong, kept for later: the other ranks wait in a collective for this one."""
    from safetensors import SafetensorError

    try:
        work()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
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


def _set_rng_state(file: Path) -> None:
    from safetensors.torch import load_file

    states = load_file(file)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _part_file(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"
