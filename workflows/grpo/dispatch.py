"""Episodes over a fleet of samplers.

Least loaded first, reissued when the infrastructure fails, fenced when a sampler dies.

    episode() --> lease a seat (oldest group first) --> sampler.run --> summary + payload
        ^                                                  | dead, late, failed
        +--------- another sampler, up to n times ---------+            after that: masked, never a reward of 0

    tend()    probes the live samplers, now and then and whenever one fails an episode, which is given nothing until it
              has answered; fences what does not; revives what is fenced:
              revive -> update to the current weights -> seats again ("a late joiner loads before its first
              token")
    update()  every live sampler loads new weights; one that fails or is late is fenced, the others go on

Always true: an episode runs on one sampler at a time; a fenced sampler is given nothing and what it still ran
is reissued; every wait has a deadline on the event loop's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question, Summary
from cluster.errors import RunBroken
from workflows.grpo.ports import BudgetSpent, Payload, Sampler, SamplerGone, Ticket

FAILURES_TO_FENCE = 16  # in a row on one sampler, without any success between: it is broken, not unlucky
RUN_GRACE_S = 5.0  # beyond an episode's own deadline, for the way there and back
POLL_S = 1.0  # between two looks at how many episodes wait for tools
CANCEL_S = 5.0  # for telling a sampler to abort; it may be the very one that hangs


class NoSampler(RunBroken):
    """No sampler could be had within the deadline."""


@dataclass(frozen=True)
class FleetLimits:
    """Times in seconds; counts per sampler or per episode."""

    episodes_per_sampler: int
    episode_retries: int
    episode_timeout_s: float
    update_timeout_s: float
    ready_timeout_s: float
    probe_every_s: float
    probe_timeout_s: float = 40.0


@dataclass(frozen=True)
class Episode:
    """How one episode ended for the controller.

    `summary` and `payload` are None when every attempt failed.
    """

    summary: Summary | None
    payload: Payload | None
    failures: tuple[str, ...]  # of the attempts that did not count
    wasted_tokens: int = 0  # sampled in those


@dataclass(eq=False)
class _Seat:
    sampler: Sampler
    running: set[asyncio.Task[tuple[Summary, Payload]]] = field(default_factory=set)
    load: int = 0  # episodes that were promised a seat here or run here
    in_tools: int = 0  # of the running ones, those that waited for a tool when last asked
    fenced: str = "not started"  # why it is given nothing; "" when it is live
    failures_in_a_row: int = 0
    suspected: bool = False  # it failed an episode, and has not been probed since
    look: asyncio.Event = field(default_factory=asyncio.Event)  # it is to be looked after now

    @property
    def name(self) -> str:
        return self.sampler.name


@dataclass(order=True)
class _Waiter:
    priority: tuple[int, ...]
    number: int
    seat: asyncio.Future[_Seat] = field(compare=False)
    avoid: frozenset[str] = field(compare=False)


class Fleet:
    """The samplers of a run. All methods belong to one event loop."""

    def __init__(self, samplers: Sequence[Sampler], limits: FleetLimits, say: Callable[[str], None]) -> None:
        self._seats = {s.name: _Seat(s) for s in samplers}
        if len(self._seats) != len(samplers):
            raise ValueError("two samplers have the same name")
        self._limits = limits
        self._say = say
        self._waiters: list[_Waiter] = []
        self._numbers = itertools.count()
        self._weights = asyncio.Lock()  # one weight update at a time, joins included
        self._ticket: Ticket | None = None
        self.updating = False
        self._tended = False
        self.failures: Counter[str] = Counter()
        self.on_change: Callable[[], None] = lambda: None

    # -- what can be seen --

    @property
    def running(self) -> int:
        return sum(len(seat.running) for seat in self._seats.values())

    @property
    def in_tools(self) -> int:
        return sum(min(len(seat.running), seat.in_tools) for seat in self._seats.values() if not seat.fenced)

    @property
    def live(self) -> list[str]:
        return [seat.name for seat in self._seats.values() if not seat.fenced]

    def loads(self) -> dict[str, tuple[int, int]]:
        """Per live sampler: episodes under way, and how many of them wait for a tool."""
        live = [seat for seat in self._seats.values() if not seat.fenced]
        return {seat.name: (len(seat.running), min(len(seat.running), seat.in_tools)) for seat in live}

    def describe(self) -> list[str]:
        """One line per sampler, for a stall report."""
        lines = []
        for seat in self._seats.values():
            state = f"fenced ({seat.fenced})" if seat.fenced else f"runs {len(seat.running)} episodes"
            lines.append(f"sampler {seat.name}: {state}")
        return [*lines, f"{len(self._waiters)} episodes wait for a seat"]

    # -- episodes --

    async def episode(self, question: Question, index: int, sampling: Sampling, priority: tuple[int, ...]) -> Episode:
        """Run one to its end, reissuing it after failures of the infrastructure.

        Raise `NoSampler` or `BudgetSpent`.
        """
        failures: list[str] = []
        wasted = 0
        avoid: set[str] = set()
        for _ in range(self._limits.episode_retries + 1):
            seat = await self._lease(priority, frozenset(avoid))
            answer = await self._run(seat, question, index, sampling)
            if not isinstance(answer, str):
                summary, payload = answer
                if summary.failure is not Failure.INFRA:
                    return Episode(summary, payload, tuple(failures), wasted)
                wasted += summary.sampled_tokens
                self._suspect(seat)
                answer = "the episode met a failure of the infrastructure"
            failures.append(f"{seat.name}: {answer}")
            self.failures[answer] += 1
            avoid.add(seat.name)
        return Episode(None, None, tuple(failures), wasted)

    async def _run(
        self, seat: _Seat, question: Question, index: int, sampling: Sampling
    ) -> tuple[Summary, Payload] | str:
        """One attempt on one sampler: its answer, or in words why there is none."""
        task = asyncio.ensure_future(seat.sampler.run(question, index, sampling))
        seat.running.add(task)
        try:
            if seat.fenced:
                return f"reissued, the sampler was fenced ({seat.fenced})"
            await asyncio.wait({task}, timeout=self._limits.episode_timeout_s + RUN_GRACE_S)
            if not task.done():
                await self._tell_cancel(seat, question.id)
                return self._failed(seat, "no answer within the episode's deadline")
            if task.cancelled():
                return f"reissued, the sampler was fenced ({seat.fenced})"
            error = task.exception()
            if error is None:
                seat.failures_in_a_row = 0
                return task.result()
            if isinstance(error, BudgetSpent):
                raise error
            if isinstance(error, SamplerGone):
                self.fence(seat.name, str(error) or "died")
                return "the sampler died"
            return self._failed(seat, f"{type(error).__name__}: {error}"[:300])
        finally:
            task.cancel()
            seat.running.discard(task)
            seat.load -= 1
            self._serve()
            self.on_change()

    def _failed(self, seat: _Seat, why: str) -> str:
        seat.failures_in_a_row += 1
        if seat.failures_in_a_row >= FAILURES_TO_FENCE:
            self.fence(seat.name, f"{FAILURES_TO_FENCE} failures in a row, the last: {why}")
        return why

    async def _tell_cancel(self, seat: _Seat, question_id: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await seat.sampler.cancel(question_id)
        except Exception as error:  # the attempt failed already; whether its remains were swept is no news
            self.failures[f"cancel: {type(error).__name__}"] += 1

    async def abort(self, question_id: str) -> None:
        """Tell every live sampler to stop working on a question."""
        await asyncio.gather(
            *(self._tell_cancel(seat, question_id) for seat in self._seats.values() if not seat.fenced)
        )

    # -- seats --

    async def _lease(self, priority: tuple[int, ...], avoid: frozenset[str]) -> _Seat:
        waiter = _Waiter(priority, next(self._numbers), asyncio.get_running_loop().create_future(), avoid)
        heapq.heappush(self._waiters, waiter)
        self._serve()
        patience = 2 * self._limits.ready_timeout_s + self._limits.probe_every_s  # a revival, tried twice
        try:
            while not waiter.seat.done():
                await asyncio.wait({waiter.seat}, timeout=patience)
                if not waiter.seat.done() and not self.live:
                    reasons = "; ".join(f"{s.name}: {s.fenced}" for s in self._seats.values())
                    raise NoSampler(f"no sampler came back within {patience:.0f} s ({reasons})")
            return waiter.seat.result()
        except asyncio.CancelledError:
            if waiter.seat.done():
                waiter.seat.result().load -= 1
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                heapq.heapify(self._waiters)

    def _serve(self) -> None:
        """Seats the waiters, oldest group first, on the least loaded live sampler with room."""
        while self._waiters:
            room = {
                seat.name: seat.load
                for seat in self._seats.values()
                if not seat.fenced and not seat.suspected and seat.load < self._limits.episodes_per_sampler
            }
            if not room:
                return
            waiter = heapq.heappop(self._waiters)
            others = [name for name in room if name not in waiter.avoid]
            seat = self._seats[min(others or room, key=lambda n: (room[n], n))]
            seat.load += 1
            waiter.seat.set_result(seat)

    def fence(self, name: str, reason: str) -> None:
        """Give it nothing more, and reissue what it runs."""
        seat = self._seats[name]
        if seat.fenced:
            return
        seat.fenced = reason
        seat.look.set()
        self._say(f"sampler {name} is fenced: {reason}; its {len(seat.running)} episodes are reissued")
        for task in list(seat.running):
            task.cancel()
        self.on_change()

    def _suspect(self, seat: _Seat) -> None:
        """It may be broken, or only have met a tool that was: without a probe, one that is would spoil all it gets."""
        if self._tended and not seat.fenced:
            seat.suspected = True
            seat.look.set()

    # -- weights and health --

    async def update(self, ticket: Ticket) -> None:
        """Every live sampler loads the weights of `ticket`; who cannot is fenced.

        Raise `NoSampler` if none could.
        """
        async with self._weights:
            self._ticket = ticket
            self.updating = True
            try:
                await asyncio.gather(*(self._load(seat) for seat in self._seats.values() if not seat.fenced))
            finally:
                self.updating = False
        self.on_change()

    async def _load(self, seat: _Seat) -> None:
        try:
            async with asyncio.timeout(self._limits.update_timeout_s):
                await seat.sampler.update(self._ticket)
        except Exception as error:  # any failure to load means the same: it must not sample under the wrong weights
            self.fence(seat.name, f"could not load new weights ({type(error).__name__}: {error})"[:300])

    async def join(self, name: str, *, revive: bool) -> None:
        """Seat a sampler that runs the current weights. Raises what its `revive` or `update` raises."""
        seat = self._seats[name]
        if revive:
            async with asyncio.timeout(self._limits.ready_timeout_s):
                await seat.sampler.revive()
        async with self._weights:  # no publish can slip in between loading and seating
            async with asyncio.timeout(self._limits.update_timeout_s):
                await seat.sampler.update(self._ticket)
            seat.fenced, seat.failures_in_a_row = "", 0
        self._serve()
        self.on_change()

    async def start(self, ticket: Ticket) -> None:
        """The first weights for all. Raises a sampler's own error if none could load them."""
        self._ticket = ticket
        joins = (self.join(name, revive=False) for name in self._seats)
        errors = await asyncio.gather(*joins, return_exceptions=True)
        for name, error in zip(self._seats, errors, strict=True):
            if error is not None:
                self._seats[name].fenced = f"could not start ({type(error).__name__}: {error})"[:300]
                self._say(f"sampler {name} {self._seats[name].fenced}")
        if not self.live:
            raise next(e for e in errors if e is not None)

    async def tend(self) -> None:
        """Probe and revive, for ever."""
        seats = self._seats.values()
        self._tended = True
        await asyncio.gather(*(self._tend(seat) for seat in seats), *(self._poll(seat) for seat in seats))

    async def _poll(self, seat: _Seat) -> None:
        """Keeps `in_tools` fresh, which only metrics need: what fails here is found by the probe."""
        while True:
            await asyncio.sleep(POLL_S)
            if seat.fenced or not seat.running:
                continue
            try:
                async with asyncio.timeout(CANCEL_S):
                    seat.in_tools = await seat.sampler.in_tools()
            except Exception:
                self.failures["poll"] += 1
            self.on_change()

    async def _tend(self, seat: _Seat) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.probe_every_s):
                    await seat.look.wait()
            seat.look.clear()
            await self._look_after(seat)

    async def _look_after(self, seat: _Seat) -> None:
        if not seat.fenced:
            try:
                async with asyncio.timeout(self._limits.probe_timeout_s):
                    well = await seat.sampler.healthy()
            except Exception as error:
                well = False
                self.failures[f"probe: {type(error).__name__}"] += 1
            seat.suspected = False
            if not well:
                self.fence(seat.name, "does not answer its health probe")
            self._serve()
            return
        try:
            await self.join(seat.name, revive=True)
            self._say(f"sampler {seat.name} is back")
        except Exception as error:  # tried again at the next round
            self.failures[f"revive: {type(error).__name__}"] += 1
            self._say(f"sampler {seat.name} could not be revived: {type(error).__name__}: {error}"[:300])
