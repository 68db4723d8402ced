"""The front of the queue: of which finished groups the next batch is made, without looking at all of them each time.

Pure. Groups stand in order of admission, which is that of their ids. The *front* begins at the oldest group and ends
with the last finished group that a batch needs, or where `window` unfinished ones stand in it: nothing behind those may
overtake them. Between two batches it only grows, so each group is looked at once for each batch, however many events
there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflows.grpo.work_buffer import GroupId

SLACK = 16  # groups that have ended and are still in the queue, beyond as many as are held


class Front:
    """Groups that wait to be trained on, oldest first. The caller sees to it that verbs come in order."""

    def __init__(self, batch: int, window: int) -> None:
        self._batch, self._window = batch, window
        self._queue: list[GroupId] = []  # some of them may have ended
        self._finished: set[GroupId] = set()
        self._unfinished: set[GroupId] = set()
        self._begin_again()

    @property
    def finished(self) -> int:
        """Groups that are finished, in the front or behind it."""
        return len(self._finished)

    def admit(self, group: GroupId) -> None:
        """It is the newest."""
        self._queue.append(group)
        self._unfinished.add(group)

    def finish(self, group: GroupId) -> None:
        """It may be picked from now on."""
        self._unfinished.remove(group)
        self._finished.add(group)
        if group <= self._last:
            self._overtaken -= 1
            self._picks += 1

    def end(self, group: GroupId) -> None:
        """It will never be picked."""
        inside = group <= self._last
        if group in self._finished:
            self._finished.remove(group)
            self._picks -= inside
        else:
            self._unfinished.remove(group)
            self._overtaken -= inside
        if len(self._queue) > 2 * (len(self._finished) + len(self._unfinished)) + SLACK:
            self._sweep()

    def is_full(self) -> bool:
        """Whether a batch can be picked."""
        while self._picks < self._batch and self._overtaken < self._window and self._seen < len(self._queue):
            self._last = self._queue[self._seen]
            self._seen += 1
            self._picks += self._last in self._finished
            self._overtaken += self._last in self._unfinished
        return self._picks >= self._batch

    def pick(self) -> tuple[list[GroupId], list[GroupId]]:
        """Of a full front, the batch, oldest first, and the unfinished groups that it overtakes."""
        picks: list[GroupId] = []
        overtaken: list[GroupId] = []
        for group in self._queue:
            if group in self._finished:
                picks.append(group)
            elif group in self._unfinished:
                overtaken.append(group)
            if len(picks) == self._batch:
                break
        return picks, overtaken

    def take(self, picks: Iterable[GroupId]) -> None:
        """They are in training."""
        self._finished.difference_update(picks)
        self._sweep()

    def _sweep(self) -> None:
        self._queue = [group for group in self._queue if group in self._finished or group in self._unfinished]
        self._begin_again()

    def _begin_again(self) -> None:
        self._seen = 0  # positions of the queue that are in the front
        self._last = -1  # id at the last of them
        self._picks = self._overtaken = 0  # finished and unfinished groups in the front
