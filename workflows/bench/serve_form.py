"""What a bench of the service is asked to do. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import UserError

PARTS = ("overhead", "steps", "overload", "swap", "kill")
ELSEWHERE = ("steps", "overload")  # of a service that somebody else has started


@dataclass(frozen=True)
class ServeForm:
    """How much is asked, and how often."""

    parts: tuple[str, ...] = PARTS
    # which of them
    minutes: float = 10.0
    # of twice the capacity
    clients: int = 32
    # at once, where there are many
    url: str = ""
    # of a service that runs already; empty: services of the run are started
    rounds: int = 2
    # passes of service and bare loop, in alternation
    questions: int = 100
    # one at a time, of each pass
    crowd_s: float = 20.0
    # of each load with many clients
    times: int = 3
    # that weights are swapped, and replicas are killed
    memory_every_s: float = 10.0
    # between two looks at what the processes hold

    @classmethod
    def asked(cls, quick: bool, minutes: float | None, clients: int, parts: Sequence[str], url: str) -> ServeForm:
        """The form of a command line. Raises `UserError` for parts that there are not, or cannot be."""
        if unknown := sorted(set(parts) - set(PARTS)):
            raise UserError(f"bench serve has no part {', '.join(unknown)}; it has {', '.join(PARTS)}.")
        if url and (not_there := sorted(set(parts) - set(ELSEWHERE))):
            raise UserError(
                f"Part {', '.join(not_there)} starts services of its own: leave out --url, or take"
                f" {' and '.join(ELSEWHERE)}."
            )
        chosen = tuple(part for part in (ELSEWHERE if url else PARTS) if part in (parts or PARTS))
        if quick:
            return cls(chosen, minutes or 1.0, clients, url, 1, 40, 8.0, 1, 2.0)
        return cls(chosen, minutes or 10.0, clients, url)
