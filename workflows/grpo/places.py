"""The samplers that belong to a fleet: who may be given episodes, who runs how many, who is full.

No I/O and no waiting: `dispatch.py` acts, this keeps the books. Always true: the sums over all live samplers are kept
as they change, so that neither an episode nor a look at the fleet costs more with each sampler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from actors.agent.trajectory import Summary
from workflows.grpo.concurrency import AdaptiveConcurrency
from workflows.grpo.ports import Payload, Sampler, SamplerLoad
from workflows.grpo.seats import Seat, Seating
from workflows.grpo.settings import GrpoSettings

NOT_STARTED = "not started"  # why a place is fenced that has not joined yet
_NOTHING = (0, 0, 0)  # in the sums


@dataclass(frozen=True)
class FleetLimits:
    """Times in seconds; counts per sampler or per episode."""

    episodes_per_sampler: int
    episode_retries: int
    episode_s: float  # within which a sampler has ended an episode, whatever hangs
    update_timeout_s: float
    ready_timeout_s: float
    probe_every_s: float
    probe_timeout_s: float = 40.0
    least_samplers: int = 1  # beyond so many, one that is fenced leaves
    group_size: int = 1  # episodes that belong together
    kv_used: float = 1.0  # share of its KV cache beyond which a sampler counts as full
    adaptive: bool = False  # whether `episodes_per_sampler` follows the KV cache

    @classmethod
    def of(cls, s: GrpoSettings, episode_s: float) -> FleetLimits:
        return cls(
            episodes_per_sampler=s.most_per_sampler,
            episode_retries=s.episode_retries,
            episode_s=episode_s,
            update_timeout_s=s.publish_timeout_s,
            ready_timeout_s=s.ready_timeout_s,
            probe_every_s=s.probe_every_s,
            probe_timeout_s=s.probe_timeout_s,
            least_samplers=s.samplers,
            group_size=s.group_size,
            kv_used=s.admission.kv_used,
            adaptive=s.adaptive_concurrency,
        )


@dataclass(eq=False)
class Place:
    """One sampler in the fleet. Its seat is open when it is neither fenced nor suspected."""

    sampler: Sampler
    seat: Seat
    concurrency: AdaptiveConcurrency | None
    running: set[asyncio.Task[tuple[Summary, Payload]]] = field(default_factory=set)
    seen: SamplerLoad = field(default_factory=SamplerLoad)  # what it said when last asked
    fenced: str = NOT_STARTED  # why it is given nothing; "" when it is live
    waits: bool = False  # it is fenced and well: the next weights are the first that it can have
    left: str = ""  # why it belongs to the fleet no more
    failures_in_a_row: int = 0
    suspected: bool = False  # it failed an episode, and has not been probed since
    look: asyncio.Event = field(default_factory=asyncio.Event)  # it is to be looked after now
    counted_running: int = 0  # in the sums; beside it live, in tools, KV cache full
    counted: tuple[int, int, int] = _NOTHING

    @property
    def name(self) -> str:
        return self.seat.name


class Places:
    """All samplers of a fleet by name, and the sums over the live ones."""

    def __init__(self, limits: FleetLimits) -> None:
        self._limits = limits
        self._places: dict[str, Place] = {}
        self.seating = Seating(limits.group_size)
        self.live = self.running = self.in_tools = self._kv_full = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(list(self._places.values()))

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def get(self, name: str) -> Place | None:
        return self._places.get(name)

    @property
    def kv_full(self) -> bool:
        """Whether every live sampler has used up its KV cache, as far as it may."""
        return 0 < self.live <= self._kv_full

    def open_ones(self) -> list[Place]:
        """Those that are live."""
        return [place for place in self._places.values() if not place.fenced]

    def add(self, sampler: Sampler) -> Place:
        """Fenced until it is said otherwise. Raise ValueError for a name twice."""
        seat = Seat(sampler.name, self._limits.episodes_per_sampler)
        self.seating.add(seat)
        self._places[seat.name] = place = Place(sampler, seat, self._concurrency())
        return place

    def remove(self, place: Place) -> None:
        """What still runs there is counted no more."""
        del self._places[place.name]
        self.seating.remove(place.seat)

    def renew(self, place: Place) -> None:
        """Its process is a new one, of which nothing is known."""
        place.seen, place.failures_in_a_row = SamplerLoad(), 0
        place.concurrency = self._concurrency()
        self.seating.set_limit(place.seat, self._limits.episodes_per_sampler)

    def set(
        self, place: Place, *, fenced: str | None = None, waits: bool = False, suspected: bool | None = None
    ) -> None:
        """Whether it is given episodes; what is None stays. `waits` belongs to `fenced`."""
        if fenced is not None:
            place.fenced, place.waits = fenced, waits
        place.suspected = place.suspected if suspected is None else suspected
        self.seating.set_open(place.seat, not place.fenced and not place.suspected)
        self._recount(place)

    def told(self, place: Place, seen: SamplerLoad, now: float) -> None:
        """It said what it has to do."""
        place.seen = seen
        if place.concurrency is not None:
            limit = place.concurrency.look(now, seen, len(place.running))
            if limit != place.seat.limit:
                self.seating.set_limit(place.seat, limit)
        self._recount(place)

    def rests(self, place: Place) -> None:
        """It has nothing to do; what its engine has counted stands."""
        place.seen = replace(place.seen, in_tools=0, waiting=0, kv_used=0.0)
        self._recount(place)

    def began(self, place: Place, task: asyncio.Task[tuple[Summary, Payload]]) -> None:
        """An episode is played there."""
        place.running.add(task)
        self._moved(place)

    def ended(self, place: Place, task: asyncio.Task[tuple[Summary, Payload]]) -> None:
        """An episode is played there no more."""
        place.running.discard(task)
        self._moved(place)

    def _moved(self, place: Place) -> None:
        """As `_recount`, in short: one episode more or less changes no other sum, unless some are in tools."""
        if place.fenced:
            return
        if place.seen.in_tools:
            self._recount(place)
            return
        running = len(place.running)
        self.running += running - place.counted_running
        place.counted_running = running

    def _recount(self, place: Place) -> None:
        """After a change: what it adds to the sums is no more what it added."""
        running, full = len(place.running), place.seen.kv_used >= self._limits.kv_used
        running = 0 if place.fenced else running
        now = _NOTHING if place.fenced else (1, min(running, place.seen.in_tools), int(full))
        live, in_tools, kv_full = (n - before for n, before in zip(now, place.counted, strict=True))
        self.running += running - place.counted_running
        place.counted_running, place.counted = running, now
        self.live += live
        self.in_tools += in_tools
        self._kv_full += kv_full

    def describe(self) -> Sequence[str]:
        """One line per sampler, for a stall report."""
        lines = []
        for place in self._places.values():
            state = f"fenced ({place.fenced})" if place.fenced else f"runs {len(place.running)} episodes"
            lines.append(f"sampler {place.name}: {state}")
        return lines

    def _concurrency(self) -> AdaptiveConcurrency | None:
        most = self._limits.episodes_per_sampler
        return AdaptiveConcurrency(min(self._limits.group_size, most), most) if self._limits.adaptive else None
