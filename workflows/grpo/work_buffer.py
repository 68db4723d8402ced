"""The groups that are anywhere in the pipeline.

Pure: no I/O, no clock, no asyncio; the controller awaits, the buffer decides.

A group's life, and the slot that it holds from admission to its end:

    admit          start           finish           take          release
      |  WAITING --------> INFLIGHT --------> FINISHED -----> TAKEN --------> trained
      |     |                 | ^                | |
      |     |                 +-+ restore         | +--- filter(reason) -----> filtered
      |     +-- cancel -------+-- cancel ---------+----- cancel(reason) -----> cancelled
    slot charged .............................................................. slot freed

Always true:
- every admitted group ends exactly once: `admitted == trained + filtered + cancelled + held`;
- at most `(max_staleness + 1) * groups_per_step` groups are held, those in training included;
- nothing is taken whose oldest sampled token is more than `max_staleness` versions old: what is, is cancelled
  and counted;
- a verb used out of order raises `Misuse` and changes nothing.

What an event costs does not grow with the number of groups that are held; a batch costs as much as it has slots
(`mmsearch bench controller`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, NewType

from workflows.grpo.front import Front

GroupId = NewType("GroupId", int)

# Of the slots: the rollout window of MiniMax (arXiv 2605.26494, section 6.2.4), as torchtitan sets it.
WINDOW_SHARE = 0.3
STALE = "stale"


class Misuse(RuntimeError):
    """A verb that does not fit the state of the buffer or of the group."""


class GroupState(StrEnum):
    """Where a held group is. A group that ended is no longer held."""

    WAITING = "waiting"
    INFLIGHT = "inflight"
    FINISHED = "finished"
    TAKEN = "taken"


@dataclass(slots=True)
class HeldGroup:
    """One group in the pipeline. The buffer alone changes it; for others it is to be read.

    `oldest_version` is that of its oldest sampled token, known when it is finished.
    """

    id: GroupId
    question_id: str
    admitted_at: int  # version
    state: GroupState = GroupState.WAITING
    oldest_version: int | None = None
    taken_at: int | None = None  # version of the weights that it is trained on

    @property
    def born(self) -> int:
        """The version that its staleness counts from.

        Before it is finished, no token can be older than this.
        """
        return self.admitted_at if self.oldest_version is None else self.oldest_version


@dataclass(frozen=True)
class BufferState:
    """Everything a WorkBuffer knows, as plain values (JSON-able)."""

    groups_per_step: int
    max_staleness: int
    window: int
    next_id: int
    trained: int
    filtered: dict[str, int]
    cancelled: dict[str, int]
    groups: tuple[HeldGroup, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BufferState:
        """Raise TypeError, KeyError or ValueError for what `to_json` did not write."""
        groups = tuple(HeldGroup(**{**g, "state": GroupState(g["state"])}) for g in data["groups"])
        return cls(**{**data, "groups": groups})


class WorkBuffer:
    """Admits, orders and releases groups so that staleness is bounded by construction.

    **The slot rule.** With P = `groups_per_step` and S = `max_staleness` there are (S+1)*P slots, charged at
    admission and freed when the weights trained on the group are live (or on filter or cancellation), never
    when it is merely taken. Claim: under FIFO, a group admitted at version v is taken at version v+S at the
    latest. When it is admitted, k others are ahead of it. If no batch is in training, k <= (S+1)*P - 1 and it
    is taken at version v + k//P <= v+S. If one is, those P groups hold slots too, so k <= S*P - 1 are left
    ahead, the next take is at v+1, and it is taken at v+1 + k//P <= v+S. A group that ends early only moves
    others forward.

    Example, P=2, S=1, four slots, version 0:
        admit a b c d (4/4)        take(0) -> a b (4/4: taking frees nothing); weights 1 go live
        release(a b, 1) (2/4)      admit e f at version 1 (4/4)
        take(1) -> c d             sampled at 0: staleness 1 = S
        release(c d, 2) (2/4)      take(2) -> e f: staleness 1 again
        Had taking freed the slots, e f would have been admitted at 0 and trained on at 2.

    **Windowed FIFO.** One slow group must not hold up the step, but "first finished, first trained" prefers
    easy questions. So a finished group may overtake unfinished ones only within a window of `window`
    positions that starts at the oldest group left, and only if every group left behind can still be taken in
    time: the k-th of them (from 0) at version v+1 + k//P. Strict FIFO always passes that test (the claim
    above), so waiting for the head always ends, and overtaking never makes a drop necessary.

    S = 0 is synchronous training: P slots, all taken together, and no slot is free until the new weights are
    live.
    """

    def __init__(self, groups_per_step: int, max_staleness: int, window: int | None = None) -> None:
        if groups_per_step < 1 or max_staleness < 0:
            raise ValueError(f"{groups_per_step=} must be at least 1 and {max_staleness=} at least 0")
        self.groups_per_step = groups_per_step
        self.max_staleness = max_staleness
        self.slots = (max_staleness + 1) * groups_per_step
        self.window = max(1, int(WINDOW_SHARE * self.slots)) if window is None else window
        if not 1 <= self.window <= self.slots:
            raise ValueError(f"window must be between 1 and the {self.slots} slots, not {self.window}")
        self._groups: dict[GroupId, HeldGroup] = {}  # in order of admission
        self._next_id = 0
        self._newest = 0  # version of the last admission
        self._taken = 0  # groups in training
        self._finished: Counter[int] = Counter()  # finished groups, by the version that they were born at
        self._front = Front(groups_per_step, self.window)
        self._awaited: set[GroupId] = set()  # until `_enough` of them are finished or gone there is no batch
        self._enough = 0
        self.trained = 0
        self.filtered: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()

    # -- counts --

    @property
    def admitted(self) -> int:
        return self._next_id

    @property
    def held(self) -> int:
        return len(self._groups)

    @property
    def upcoming(self) -> int:
        """Held groups that are not in training: what later steps can be made of."""
        return self.held - self._taken

    @property
    def released(self) -> int:
        """Groups that ended: `admitted == released + held`."""
        return self.trained + self.filtered.total() + self.cancelled.total()

    @property
    def free_slots(self) -> int:
        return self.slots - self.held

    def ends(self) -> dict[str, int]:
        """Groups that ended, by how: trained, filtered/<reason>, cancelled/<reason>."""
        filtered = {f"filtered/{reason}": n for reason, n in self.filtered.items()}
        cancelled = {f"cancelled/{reason}": n for reason, n in self.cancelled.items()}
        return {"trained": self.trained, **filtered, **cancelled}

    def groups(self, *states: GroupState) -> list[HeldGroup]:
        """Held groups in order of admission, of the given states or all."""
        return [g for g in self._groups.values() if not states or g.state in states]

    def get(self, group: GroupId) -> HeldGroup:
        """Raise `Misuse` for a group that is not held."""
        if group not in self._groups:
            raise Misuse(f"group {group} is not held: it was never admitted, or it has ended")
        return self._groups[group]

    def __contains__(self, group: object) -> bool:
        return group in self._groups

    # -- the life of a group --

    def admit(self, question_id: str, version: int) -> GroupId | None:
        """Charge a slot. None: there is none free."""
        if self.free_slots == 0:
            return None
        if version < self._newest:
            raise Misuse(f"admission at version {version} after one at version {self._newest}")
        group = GroupId(self._next_id)
        self._next_id += 1
        self._newest = version
        self._groups[group] = HeldGroup(group, question_id, version)
        self._front.admit(group)
        return group

    def start(self, group: GroupId) -> None:
        """Its episodes are being dispatched."""
        self._expect(group, GroupState.WAITING).state = GroupState.INFLIGHT

    def finish(self, group: GroupId, oldest_version: int) -> None:
        """All its episodes ended.

        `oldest_version` is that of the oldest token among those that will be trained on.
        """
        held = self._expect(group, GroupState.INFLIGHT)
        held.state, held.oldest_version = GroupState.FINISHED, oldest_version
        self._finished[oldest_version] += 1
        self._front.finish(group)
        self._no_longer_awaited(group)

    def filter(self, group: GroupId, reason: str) -> None:
        """It has nothing to teach (all siblings scored alike): its slot is free at once."""
        self._end(self._expect(group, GroupState.FINISHED))
        self.filtered[reason] += 1

    def cancel(self, group: GroupId, reason: str) -> None:
        """It will not be trained on: its slot is free at once. A group in training cannot be cancelled."""
        self._end(self._expect(group, GroupState.WAITING, GroupState.INFLIGHT, GroupState.FINISHED))
        self.cancelled[reason] += 1

    def take(self, version: int) -> list[GroupId] | None:
        """The next batch of P groups for a learner whose weights are `version`, oldest first.

        None: not ready, wait.

        Finished groups that are too old are cancelled as stale first: this check is the guarantee.
        """
        if self._taken:
            raise Misuse("a batch is in training: release it before the next is taken")
        if any(version - born > self.max_staleness for born in self._finished):
            for group in self.expired(version, GroupState.FINISHED):
                self.cancel(group, STALE)
        if self._enough or not self._front.is_full():
            return None
        picks, overtaken = self._front.pick()
        if self._must_wait(overtaken, version):
            return None
        for group in picks:
            held = self._groups[group]
            held.state, held.taken_at = GroupState.TAKEN, version
            self._count_out(held)
        self._front.take(picks)
        self._taken = len(picks)
        return picks

    def release(self, groups: Iterable[GroupId], live_version: int) -> None:
        """Free the slots of a taken batch: the weights trained on it run everywhere as `live_version`."""
        batch = list(groups)
        for group in batch:
            held = self._expect(group, GroupState.TAKEN)
            if held.taken_at is None or live_version <= held.taken_at:
                taken = f"group {group} was taken at {held.taken_at}"
                raise Misuse(f"{taken}: version {live_version} did not learn from it")
        if len(set(batch)) != len(batch):
            raise Misuse(f"a group is released twice in {batch}")
        for group in batch:
            del self._groups[group]
        self._taken -= len(batch)
        self.trained += len(batch)

    def expired(self, version: int, *states: GroupState) -> list[GroupId]:
        """Groups that no learner at `version` or later may train on.

        Cancelling them early only saves work.
        """
        wanted = states or (GroupState.WAITING, GroupState.INFLIGHT, GroupState.FINISHED)
        return [g.id for g in self.groups(*wanted) if version - g.born > self.max_staleness]

    # -- across runs --

    def snapshot(self) -> BufferState:
        """Raise `Misuse` while a batch is in training.

        Whether it was learned from would be unknown after a restart.
        """
        if self._taken:
            raise Misuse("a batch is in training: a snapshot belongs between steps")
        return BufferState(
            groups_per_step=self.groups_per_step,
            max_staleness=self.max_staleness,
            window=self.window,
            next_id=self._next_id,
            trained=self.trained,
            filtered=dict(self.filtered),
            cancelled=dict(self.cancelled),
            groups=tuple(replace(group) for group in self._groups.values()),
        )

    @classmethod
    def restore(cls, state: BufferState) -> WorkBuffer:
        """Finished groups stay finished.

        Those in flight wait again, because their episodes died with the process.
        """
        buffer = cls(state.groups_per_step, state.max_staleness, state.window)
        for group in state.groups:
            pending = group.state is GroupState.INFLIGHT
            buffer._groups[group.id] = replace(group, state=GroupState.WAITING if pending else group.state)
            buffer._newest = max(buffer._newest, group.admitted_at)
            buffer._front.admit(group.id)
            if group.state is GroupState.FINISHED:
                buffer._finished[group.born] += 1
                buffer._front.finish(group.id)
            elif group.state is GroupState.TAKEN:
                raise ValueError("a snapshot that no buffer wrote: a batch is in training")
        if buffer.held > buffer.slots or any(not 0 <= g < state.next_id for g in buffer._groups):
            raise ValueError("a snapshot that no buffer wrote: more groups than slots, or ids from the future")
        buffer._next_id = state.next_id
        buffer.trained = state.trained
        buffer.filtered = Counter(state.filtered)
        buffer.cancelled = Counter(state.cancelled)
        if buffer.admitted != buffer.released + buffer.held:
            raise ValueError("a snapshot that no buffer wrote: its counts do not add up")
        return buffer

    # -- inside --

    def _expect(self, group: GroupId, *states: GroupState) -> HeldGroup:
        held = self.get(group)
        if held.state not in states:
            raise Misuse(f"group {group} is {held.state}, not {' or '.join(states)}")
        return held

    def _end(self, held: HeldGroup) -> None:
        del self._groups[held.id]
        self._front.end(held.id)
        if held.state is GroupState.FINISHED:
            self._count_out(held)
        else:
            self._no_longer_awaited(held.id)

    def _count_out(self, finished: HeldGroup) -> None:
        self._finished[finished.born] -= 1
        if not self._finished[finished.born]:
            del self._finished[finished.born]

    def _must_wait(self, overtaken: Sequence[GroupId], version: int) -> bool:
        """Whether a group that would be overtaken could then no longer be taken in time, by its admission.

        Those behind the batch stand where strict FIFO would have them, and there they are in time.
        """
        left = [self._groups[group].admitted_at + self.max_staleness - version for group in overtaken]  # chances
        late = [k for k, chances in enumerate(left) if 1 + k // self.groups_per_step > chances]
        if not late:
            return False
        last_chance = [k for k in late if left[k] == 0]  # they are taken now or never, so each is waited for
        self._awaited = {overtaken[k] for k in last_chance or range(late[-1] + 1)}
        self._enough = len(last_chance) or 1
        return True

    def _no_longer_awaited(self, group: GroupId) -> None:
        if group in self._awaited:
            self._awaited.remove(group)
            self._enough -= 1
            if not self._enough:
                self._awaited.clear()
