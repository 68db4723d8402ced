"""Episodes over a fleet of samplers.

Reissued when the infrastructure fails, fenced when a sampler dies; which sampler is whose: seats.py.

    episode() --> lease a seat (oldest group first) --> sampler.run --> summary + payload
        ^                                                  | dead, late, failed
        +--------- another sampler, up to n times ---------+            after that: masked, never a reward of 0

    tend()    probes the live samplers, now and then and whenever one fails an episode, which is given nothing until it
              has answered; fences what does not; revives what is fenced:
              revive -> update to the current weights -> seats again ("a late joiner loads before its first
              token"); of more samplers than there must be, one that is fenced leaves instead
    update()  every live sampler loads new weights; one that fails or is late is fenced, the others go on
    add() -> join(), leave()   samplers that come and go while the run lasts (membership.py)

Always true: an episode runs on one sampler at a time; a fenced sampler is given nothing and what it still ran
is reissued; every wait has a deadline on the event loop's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question, Summary
from cluster.errors import RunBroken
from workflows.grpo.places import FleetLimits, Place, Places
from workflows.grpo.ports import BudgetSpent, Payload, Sampler, SamplerGone, SamplerLoad, Ticket

FAILURES_TO_FENCE = 16  # in a row on one sampler, without any success between: it is broken, not unlucky
RUN_GRACE_S = 5.0  # beyond an episode's own deadline, for the way there and back
POLL_S = 1.0  # between two looks at what a sampler has to do
CANCEL_S = 5.0  # for telling a sampler to abort; it may be the very one that hangs


class NoSampler(RunBroken):
    """No sampler could be had within the deadline."""


@dataclass(frozen=True)
class Episode:
    """How one episode ended for the controller.

    `summary` and `payload` are None when every attempt failed.
    """

    summary: Summary | None
    payload: Payload | None
    failures: tuple[str, ...]  # of the attempts that did not count
    wasted_tokens: int = 0  # sampled in those


@dataclass(order=True)
class _Waiter:
    priority: tuple[int, ...]
    number: int
    seat: asyncio.Future[Place] = field(compare=False)
    avoid: frozenset[str] = field(compare=False)
    group: Hashable | None = field(compare=False)


class Fleet:
    """The samplers of a run. All methods belong to one event loop."""

    def __init__(self, samplers: Sequence[Sampler], limits: FleetLimits, say: Callable[[str], None]) -> None:
        self._limits = limits
        self._say = say
        self.places = Places(limits)  # for others to look at only
        self._seating = self.places.seating
        self._waiters: list[_Waiter] = []  # a heap; those whose future is done have gone
        self._waiting = 0
        self._numbers = itertools.count()
        self._weights = asyncio.Lock()  # one weight update at a time, joins included
        self._ticket: Ticket | None = None
        self._tending: asyncio.TaskGroup | None = None
        self.updating = False
        self.failures: Counter[str] = Counter()
        self.on_change: Callable[[str | None], None] = lambda _: None  # told which sampler; None: any of them
        self.on_leave: Callable[[Sampler], None] = lambda _: None
        for sampler in samplers:
            self.add(sampler)

    # -- what can be seen --

    @property
    def live(self) -> list[str]:
        return [place.name for place in self.places.open_ones()]

    def describe(self) -> list[str]:
        """One line per sampler, for a stall report."""
        return [*self.places.describe(), f"{self._waiting} episodes wait for a seat"]

    # -- episodes --

    async def episode(
        self,
        question: Question,
        index: int,
        sampling: Sampling,
        priority: tuple[int, ...],
        group: Hashable | None = None,
    ) -> Episode:
        """Run one to its end, reissuing it after failures of the infrastructure.

        `group`: its siblings have the same, and go to the same sampler; `end_group` ends it.
        Raise `NoSampler` or `BudgetSpent`.
        """
        failures: list[str] = []
        wasted = 0
        avoid: set[str] = set()
        left = self._limits.episode_retries + 1
        while left:
            place = await self._lease(priority, frozenset(avoid), group)
            answer = await self._run(place, question, index, sampling)
            if not isinstance(answer, str):
                summary, payload = answer
                if summary.failure is not Failure.INFRA:
                    return Episode(summary, payload, tuple(failures), wasted)
                wasted += summary.sampled_tokens
                self._suspect(place)
                answer = "the episode met a failure of the infrastructure"
            failures.append(f"{place.name}: {answer}")
            self.failures[answer] += 1
            avoid.add(place.name)
            left -= not place.left  # that a sampler left is no try that failed
        return Episode(None, None, tuple(failures), wasted)

    def end_group(self, group: Hashable) -> None:
        """No sibling will be played any more: what was kept free for them is not kept any longer."""
        self._seating.end_group(group)
        self._serve()

    async def _run(
        self, place: Place, question: Question, index: int, sampling: Sampling
    ) -> tuple[Summary, Payload] | str:
        """One attempt on one sampler: its answer, or in words why there is none."""
        task = asyncio.ensure_future(place.sampler.run(question, index, sampling))
        place.running.add(task)
        self.places.recount(place)
        try:
            if place.fenced:
                return f"reissued, the sampler was fenced ({place.fenced})"
            await asyncio.wait({task}, timeout=self._limits.episode_timeout_s + RUN_GRACE_S)
            if not task.done():
                await self._tell_cancel(place, question.id)
                return self._failed(place, "no answer within the episode's deadline")
            if task.cancelled():
                return f"reissued, the sampler was fenced ({place.fenced})"
            error = task.exception()
            if error is None:
                place.failures_in_a_row = 0
                return task.result()
            if isinstance(error, BudgetSpent):
                raise error
            if isinstance(error, SamplerGone):
                self.fence(place.name, str(error) or "died")
                return "the sampler died"
            return self._failed(place, f"{type(error).__name__}: {error}"[:300])
        finally:
            task.cancel()
            place.running.discard(task)
            self.places.recount(place)
            self._seating.give_back(place.seat)
            self._serve()
            self.on_change(place.name)

    def _failed(self, place: Place, why: str) -> str:
        place.failures_in_a_row += 1
        if place.failures_in_a_row >= FAILURES_TO_FENCE:
            self.fence(place.name, f"{FAILURES_TO_FENCE} failures in a row, the last: {why}")
        return why

    async def _tell_cancel(self, place: Place, question_id: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await place.sampler.cancel(question_id)
        except Exception as error:  # the attempt failed already; whether its remains were swept is no news
            self.failures[f"cancel: {type(error).__name__}"] += 1

    async def abort(self, question_id: str) -> None:
        """Tell every live sampler to stop working on a question."""
        await asyncio.gather(*(self._tell_cancel(place, question_id) for place in self.places.open_ones()))

    # -- seats --

    async def _lease(self, priority: tuple[int, ...], avoid: frozenset[str], group: Hashable | None) -> Place:
        if not self._waiting and (seat := self._seating.take(group, avoid)):
            return self.places[seat.name]
        waiter = _Waiter(priority, next(self._numbers), asyncio.get_running_loop().create_future(), avoid, group)
        heapq.heappush(self._waiters, waiter)
        self._waiting += 1
        self._serve()
        patience = 2 * self._limits.ready_timeout_s + self._limits.probe_every_s  # a revival, tried twice
        try:
            while not waiter.seat.done():
                await asyncio.wait({waiter.seat}, timeout=patience)
                if not waiter.seat.done() and not self.places.live:
                    reasons = "; ".join(f"{place.name}: {place.fenced}" for place in self.places)
                    raise NoSampler(f"no sampler came back within {patience:.0f} s ({reasons})")
            return waiter.seat.result()
        except asyncio.CancelledError:
            if waiter.seat.done():
                self._seating.give_back(waiter.seat.result().seat)
                self._serve()
            raise
        finally:
            if waiter.seat.cancel():  # nobody waits for it any more, `_serve` passes it over
                self._waiting -= 1

    def _serve(self) -> None:
        """Seats the waiters, oldest group first."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.seat.done():
                seat = self._seating.take(waiter.group, waiter.avoid)
                if seat is None:
                    return
                waiter.seat.set_result(self.places[seat.name])
                self._waiting -= 1
            heapq.heappop(self._waiters)

    def fence(self, name: str, reason: str) -> None:
        """Give it nothing more, and reissue what it runs."""
        place = self.places.get(name)
        if place is None or place.fenced:
            return
        place.look.set()
        self._say(f"sampler {name} is fenced: {reason}; its {len(place.running)} episodes are reissued")
        self.places.set(place, fenced=reason)
        for task in list(place.running):
            task.cancel()
        self.on_change(name)

    def _suspect(self, place: Place) -> None:
        """It may be broken, or only have met a tool that was: without a probe, one that is would spoil all it gets."""
        if self._tending and not place.fenced:
            self.places.set(place, suspected=True)
            place.look.set()

    # -- coming and going --

    def add(self, sampler: Sampler) -> None:
        """It belongs to the fleet, and is given nothing before it has joined. Raise ValueError for a name twice."""
        self.places.add(sampler)

    async def join(self, name: str, *, revive: bool = False) -> None:
        """Seat a sampler that runs the current weights. Raises what its `revive` or `update` raises."""
        place = self.places[name]
        if revive:
            async with asyncio.timeout(self._limits.ready_timeout_s):
                await place.sampler.revive()
            self.places.renew(place)
        async with self._weights:  # no publish can slip in between loading and seating
            async with asyncio.timeout(self._limits.update_timeout_s):
                await place.sampler.update(self._ticket)
            if not place.left:
                self.places.set(place, fenced="", suspected=False)
        if not revive:
            self._tend_to(place)
        self._serve()
        self.on_change(name)

    def leave(self, name: str, reason: str) -> None:
        """It belongs to the fleet no more; what it ran is reissued, which counts against no episode."""
        place = self.places[name]
        place.left = reason
        self.fence(name, reason)
        self.places.remove(place)
        place.look.set()
        self._say(f"sampler {name} has left: {reason}; there are {len(self.places)}")
        self.on_leave(place.sampler)
        self.on_change(None)

    # -- weights --

    async def start(self, ticket: Ticket) -> None:
        """The first weights for all. Raises a sampler's own error if none could load them."""
        self._ticket = ticket
        places = list(self.places)
        errors = await asyncio.gather(*(self.join(place.name) for place in places), return_exceptions=True)
        for place, error in zip(places, errors, strict=True):
            if error is not None:
                self.places.set(place, fenced=f"could not start ({type(error).__name__}: {error})"[:300])
                self._say(f"sampler {place.name} {place.fenced}")
        if not self.places.live:
            raise next(e for e in errors if e is not None)

    async def update(self, ticket: Ticket) -> None:
        """Every live sampler loads the weights of `ticket`; who cannot is fenced.

        Raise `NoSampler` if none could.
        """
        async with self._weights:
            self._ticket = ticket
            self.updating = True
            self.on_change(None)
            try:
                await asyncio.gather(*(self._load(place) for place in self.places.open_ones()))
            finally:
                self.updating = False
        self.on_change(None)

    async def _load(self, place: Place) -> None:
        try:
            async with asyncio.timeout(self._limits.update_timeout_s):
                await place.sampler.update(self._ticket)
        except Exception as error:  # any failure to load means the same: it must not sample under the wrong weights
            self.fence(place.name, f"could not load new weights ({type(error).__name__}: {error})"[:300])

    # -- health --

    async def tend(self) -> None:
        """Probe, revive, ask what they have to do, for ever."""
        async with asyncio.TaskGroup() as self._tending:
            for place in self.places:
                self._tend_to(place)
            await asyncio.Event().wait()

    def _tend_to(self, place: Place) -> None:
        if self._tending:
            self._tending.create_task(self._tend(place))
            self._tending.create_task(self._poll(place))

    async def _poll(self, place: Place) -> None:
        """Keeps what is known of its load fresh: what fails here is found by the probe."""
        now = asyncio.get_running_loop().time
        while not place.left:
            await asyncio.sleep(POLL_S)
            if place.fenced or not place.running:
                place.seen = SamplerLoad()
                self.places.recount(place)
                continue
            try:
                async with asyncio.timeout(CANCEL_S):
                    seen = await place.sampler.load()
            except Exception:
                self.failures["poll"] += 1
            else:
                self.places.told(place, seen, now())
                self._serve()
            self.on_change(place.name)

    async def _tend(self, place: Place) -> None:
        while not place.left:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.probe_every_s):
                    await place.look.wait()
            place.look.clear()
            if not place.left:
                await self._look_after(place)

    async def _look_after(self, place: Place) -> None:
        if not place.fenced:
            try:
                async with asyncio.timeout(self._limits.probe_timeout_s):
                    well = await place.sampler.healthy()
            except Exception as error:
                well = False
                self.failures[f"probe: {type(error).__name__}"] += 1
            if place.left:
                return
            if not well:
                self.fence(place.name, "does not answer its health probe")
            self.places.set(place, suspected=False)
            self._serve()
            return
        if len(self.places) > self._limits.least_samplers:
            self.leave(place.name, place.fenced)
            return
        try:
            await self.join(place.name, revive=True)
            self._say(f"sampler {place.name} is back")
        except Exception as error:  # tried again at the next round
            self.failures[f"revive: {type(error).__name__}"] += 1
            self._say(f"sampler {place.name} could not be revived: {type(error).__name__}: {error}"[:300])
