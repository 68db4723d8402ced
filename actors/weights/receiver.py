"""A sampler's end of every transport: whatever a ticket says, as a local folder that vLLM can read.

    folder         lies here: locked against its writer, every byte checked in place
    object_store   fetched from Ray's store, digested while it is copied into a folder of this process
    storage        the same, from a directory or s3://

Always true: inside `opened` the folder holds exactly what the ticket says, and nobody changes it. A ticket that is
refused has changed nothing: who asked keeps what it has.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from actors.weights.buckets import landed
from actors.weights.manifest import Maps, TornPublish, WeightTicket, check_ticket, verify
from actors.weights.transport import FolderTransport, default_root, reading

Shapes = Mapping[str, tuple[int, ...]]

_ALIVE = "alive"  # a file that the owner of a landing folder holds locked
_YOUNG_S = 60.0  # a folder without the lock may still be in the making


class Receiver:
    """Opens tickets of any kind but nccl, whose weights never come by here."""

    def __init__(self, base: Path | None = None) -> None:
        """`base` is where fetched weights are laid: shared memory when not given."""
        self._base = base or default_root("x").parent
        self._landing: _Landing | None = None
        self._maps = Maps()

    @contextmanager
    def opened(self, ticket: WeightTicket, expected: Shapes | None = None) -> Iterator[Path]:
        """The folder, in Hugging Face layout. `expected` (name -> shape) is what the model needs.

        Raise `TornPublish` or `WeightMismatch` for weights that must not be loaded, and what Ray or the storage
        raises when they cannot be asked.
        """
        check_ticket(ticket, expected)
        if ticket.kind == "folder":
            folder = Path(ticket.folder)
            if not folder.is_dir():
                raise TornPublish(
                    f"{folder} has no weights, or is not on this node: publish.transport shared_memory is for one node"
                )
            with reading(folder):
                verify(ticket, maps=self._maps)
                yield folder
        elif ticket.kind in ("object_store", "storage"):
            if self._landing is None:
                self._landing = _Landing(self._base)
            yield Path(landed(ticket, self._landing.transport).folder)
        else:
            raise ValueError(f"weights by {ticket.kind} come to the engine itself: there is no folder to open")

    def close(self) -> None:
        """Delete what was fetched, and let go of what was read."""
        self._maps = Maps()
        if self._landing is not None:
            self._landing.close()
            self._landing = None


class _Landing:
    """A folder of this process for the newest version it fetched. Those of processes that were killed are deleted."""

    def __init__(self, base: Path) -> None:
        prefix = f"mmsearch-landed-{os.getuid()}-"
        for left in base.glob(f"{prefix}*"):
            _delete_orphan(left)
        self.root = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        self._alive = os.open(self.root / _ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self.transport = FolderTransport(self.root, keep=1)

    def close(self) -> None:
        self.transport.close()
        os.close(self._alive)
        shutil.rmtree(self.root, ignore_errors=True)


def _delete_orphan(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime < _YOUNG_S:
            return
        alive = os.open(folder / _ALIVE, os.O_RDWR)
    except OSError:  # another process deletes it, too
        return
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(alive)
