"""A sampler's end of every transport: whatever a ticket says, as a local folder that vLLM can read.

    folder         lies here: locked against its writer, every byte checked in place
    object_store   fetched from Ray's store, digested while it is copied into a folder of this process
    storage        the same, from a directory or s3://

Always true: inside `opened` the folder holds exactly what the ticket says, and nobody changes it. A ticket that is
refused has changed nothing: who asked keeps what it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from actors.weights.buckets import landed
from actors.weights.landing import Landing
from actors.weights.manifest import Maps, TornPublish, WeightTicket, check_ticket, verify
from actors.weights.transport import reading

Shapes = Mapping[str, tuple[int, ...]]


class Receiver:
    """Opens tickets of any kind but nccl, whose weights never come by here."""

    def __init__(self, base: Path | None = None) -> None:
        """`base` is where fetched weights are laid: shared memory when not given."""
        self._base = base
        self._landing: Landing | None = None
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
                self._landing = Landing(self._base)
            yield Path(landed(ticket, self._landing.transport).folder)
        else:
            raise ValueError(f"weights by {ticket.kind} come to the engine itself: there is no folder to open")

    def close(self) -> None:
        """Delete what was fetched, and let go of what was read."""
        self._maps = Maps()
        if self._landing is not None:
            self._landing.close()
            self._landing = None
