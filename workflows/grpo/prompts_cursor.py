"""Which question is asked next.

Pure and resumable: the order of an epoch depends on seed, epoch and ids alone.

Each epoch asks every question once, in the order of a keyed hash of (seed, epoch, id). So the order is the
same on every machine, it does not depend on how the rows are sharded, and a run that resumes on a dataset
with rows added or removed goes on with the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True)
class CursorState:
    """Everything a PromptsCursor knows besides the ids, as plain values (JSON-able)."""

    seed: int
    epoch: int
    consumed: tuple[str, ...]  # of this epoch, in order
    returned: tuple[str, ...]  # to be asked again, before anything else
    returns: dict[str, int]  # how often each question came back

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CursorState:
        """Raise TypeError or KeyError for what `to_json` did not write."""
        return cls(**{**data, "consumed": tuple(data["consumed"]), "returned": tuple(data["returned"])})


def epoch_order(ids: Iterable[str], seed: int, epoch: int) -> list[str]:
    """A permutation of `ids` that depends on nothing else."""
    return sorted(ids, key=lambda i: blake2b(f"{seed}\0{epoch}\0{i}".encode(), digest_size=16).digest())


class PromptsCursor:
    """An endless walk over the questions, epoch after epoch."""

    def __init__(self, ids: Iterable[str], seed: int) -> None:
        self._ids = list(ids)
        self._known = frozenset(self._ids)
        if not self._ids:
            raise ValueError("there is no question to ask")
        if len(self._known) != len(self._ids):
            double = [i for i, n in Counter(self._ids).items() if n > 1]
            raise ValueError(f"{len(double)} question ids occur more than once, {double[0]!r} for one")
        self.seed = seed
        self.epoch = 0
        self._consumed: dict[str, None] = {}
        self._returned: list[str] = []
        self._returns: Counter[str] = Counter()
        self._queue = self._rest()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def asked_this_epoch(self) -> int:
        return len(self._consumed)

    def next(self) -> str:
        """The id of the next question.

        What was given back comes first, and a finished epoch is followed by the next.
        """
        if self._returned:
            return self._returned.pop(0)
        if not self._queue:
            self.epoch += 1
            self._consumed.clear()
            self._queue = self._rest()
        question = self._queue.pop()
        self._consumed[question] = None
        return question

    def give_back(self, question: str, at_most: int) -> bool:
        """Ask it again, unless it already came back `at_most` times. Returns whether it will be."""
        if question not in self._known:
            raise ValueError(f"{question!r} is not one of the questions")
        if self._returns[question] >= at_most:
            return False
        self._returns[question] += 1
        self._returned.append(question)
        return True

    def snapshot(self) -> CursorState:
        return CursorState(
            seed=self.seed,
            epoch=self.epoch,
            consumed=tuple(self._consumed),
            returned=tuple(self._returned),
            returns=dict(self._returns),
        )

    @classmethod
    def restore(cls, ids: Iterable[str], state: CursorState) -> PromptsCursor:
        """Goes on where `state` stood.

        Questions that are gone from `ids` are left out, new ones are still to come.
        """
        cursor = cls(ids, state.seed)
        cursor.epoch = state.epoch
        cursor._consumed = dict.fromkeys(i for i in state.consumed if i in cursor._known)
        cursor._returned = [i for i in state.returned if i in cursor._known]
        cursor._returns = Counter(state.returns)
        cursor._queue = cursor._rest()
        return cursor

    def _rest(self) -> list[str]:
        """What this epoch has still to ask, last first."""
        rest = (i for i in self._ids if i not in self._consumed)
        return epoch_order(rest, self.seed, self.epoch)[::-1]
