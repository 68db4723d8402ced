"""Episodes over a fleet of samplers.

Reissued when the infrastructure fails, fenced when a sampler dies; which sampler is whose: seats.py; who waits for
one: seat_queue.py.

    episode() --> lease a seat (oldest group first) --> sampler.run --> summary + payload
        ^                                                  | dead, late, failed
        +--------- another sampler, up to n times ---------+            after that: masked, never a reward of 0

    tend()    probes the live samplers, now and then and whenever one fails an episode, which is given nothing until it
              has answered; fences what does not; revives what is fenced:
              revive -> update to the current weights -> seats again ("a late joiner loads before its first
              token"); of more samplers than there must be, one that is fenced leaves instead
    update()  every live sampler loads new weights; one that fails or is late is fenced, the others go on; one that can
              only have the next ones (GPU to GPU) is fenced as well, and gets them with the others
    add() -> join(), leave()   samplers that come and go while the run lasts (membership.py)

Always true: an episode runs on one sampler at a time; a fenced sampler is given nothing and what it still ran
is reissued; every wait has a deadline on the event loop's clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question, Summary
from actors.weights.manifest import WeightsMissed
from workflows.grpo.places import FleetLimits, Place, Places
from workflows.grpo.ports import BudgetSpent, Payload, Sampler, SamplerGone, Ticket
from workflows.grpo.seat_queue import NoSampler, SeatQueue

FAILURES_TO_FENCE = 16  # in a row on one sampler, without any success between: it is broken, not unlucky
RUN_GRACE_S = 5.0  # beyond what an episode may take on its sampler, for the way there and back
POLL_S = 1.0  # between two looks at what a sampler has to do
CANCEL_S = 5.0  # for telling a sampler to abort; it may be the very one that hangs


@dataclass(frozen=True)
class Episode:
    """How one episode ended for the controller.

    `summary` and `payload` are None when every attempt failed.
    """

    summary: Summary | None
    payload: Payload | None
    failures: tuple[str, ...]  # of the attempts that did not count
    wasted_tokens: int = 0  # sampled in those


class Fleet:
    """The samplers of a run. All methods belong to one event loop."""

    def __init__(self, samplers: Sequence[Sampler], limits: FleetLimits, say: Callable[[str], None]) -> None:
        self._limits = limits
        self._say = say
        self.places = Places(limits)  # for others to look at only
        revived_twice_s = 2 * limits.ready_timeout_s + limits.probe_every_s
        self._queue = SeatQueue(self.places, revived_twice_s)
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
        return [*self.places.describe(), f"{self._queue.waiting} episodes wait for a seat"]

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
            place = await self._queue.lease(priority, frozenset(avoid), group)
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
        self._queue.end_group(group)

    async def _run(
        self, place: Place, question: Question, index: int, sampling: Sampling
    ) -> tuple[Summary, Payload] | str:
        """One attempt on one sampler: its answer, or in words why there is none."""
        task = asyncio.ensure_future(place.sampler.run(question, index, sampling))
        self.places.began(place, task)
        try:
            if place.fenced:
                return f"reissued, the sampler was fenced ({place.fenced})"
            await asyncio.wait({task}, timeout=self._limits.episode_s + RUN_GRACE_S)
            if not task.done():
                await self._tell_cancel(place, question.id, index)
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
            self.places.ended(place, task)
            self._queue.give_back(place)
            self.on_change(place.name)

    def _failed(self, place: Place, why: str) -> str:
        place.failures_in_a_row += 1
        if place.failures_in_a_row >= FAILURES_TO_FENCE:
            self.fence(place.name, f"{FAILURES_TO_FENCE} failures in a row, the last: {why}")
        return why

    async def _tell_cancel(self, place: Place, question_id: str, index: int | None = None) -> None:
        """One attempt alone, or all: its siblings sit on the same sampler and are in time."""
        try:
            async with asyncio.timeout(CANCEL_S):
                await place.sampler.cancel(question_id, index)
        except Exception as error:  # the attempt failed already; whether its remains were swept is no news
            self.failures[f"cancel: {type(error).__name__}"] += 1

    async def abort(self, question_id: str) -> None:
        """Tell every live sampler to stop working on a question."""
        await asyncio.gather(*(self._tell_cancel(place, question_id) for place in self.places.open_ones()))

    def fence(self, name: str, reason: str) -> None:
        """Give it nothing more, and reissue what it runs."""
        place = self.places.get(name)
        if place is None or (place.fenced and not place.waits):
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

    async def join(self, name: str) -> bool:
        """Seat a sampler that was added, once it runs the newest weights, and look after it from then on.

        False when it waits for the next ones. Raises what its `update` raises.
        """
        place = self.places[name]
        seated = await self._seat(place)
        self._tend_to(place)
        return seated

    async def _seat(self, place: Place) -> bool:
        """As `join`. It loads beside everything else: a publish waits for nobody who is not seated yet."""
        while True:
            ticket = self._ticket
            try:
                async with asyncio.timeout(self._limits.update_timeout_s):
                    await place.sampler.update(ticket)
            except (SamplerGone, TimeoutError):
                raise
            except WeightsMissed as missed:
                if ticket is self._ticket:
                    self._let_wait(place, missed)
                    return False
            except Exception:  # of weights that were replaced meanwhile it says nothing: they may be gone
                if ticket is self._ticket:
                    raise
            else:
                if ticket is self._ticket:
                    self._open(place)
                    return True

    def _open(self, place: Place) -> None:
        if not place.left:
            self.places.set(place, fenced="", suspected=False)
        self._queue.serve()
        self.on_change(place.name)

    def _let_wait(self, place: Place, missed: WeightsMissed) -> None:
        """Fenced, and not to be replaced."""
        if place.left:
            return
        self.fence(place.name, str(missed))
        self.places.set(place, fenced=f"waits for the next weights ({missed})", waits=True)
        self._say(f"sampler {place.name} {place.fenced}")

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
        """The first weights for all, at once. Raises a sampler's own error, or `NoSampler`, if none could load them."""
        self._ticket = ticket
        places = list(self.places)
        answers = await asyncio.gather(*(self.join(place.name) for place in places), return_exceptions=True)
        errors: list[BaseException] = []
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, BaseException):
                self.places.set(place, fenced=f"could not start ({type(answer).__name__}: {answer})"[:300])
                self._say(f"sampler {place.name} {place.fenced}")
                errors.append(answer)
        if not self.places.live:
            raise next(iter(errors), NoSampler("no sampler took part in the first publish"))

    async def update(self, ticket: Ticket) -> None:
        """Every live sampler loads the weights of `ticket`, and each that waits for them; who cannot is fenced.

        Ends within `update_timeout_s`. That none could is no error: whoever is revived loads them before its first
        token, and episodes wait for that (`NoSampler` when it takes too long).
        """
        self._ticket = ticket
        self.updating = True
        self.on_change(None)
        try:
            asked = [place for place in self.places if place.waits or not place.fenced]
            await asyncio.gather(*(self._load(place) for place in asked))
        finally:
            self.updating = False
        self.on_change(None)

    async def _load(self, place: Place) -> None:
        try:
            async with asyncio.timeout(self._limits.update_timeout_s):
                await place.sampler.update(self._ticket)
        except WeightsMissed as missed:
            self._let_wait(place, missed)
        except Exception as error:  # any failure to load means the same: it must not sample under the wrong weights
            self.fence(place.name, f"could not load new weights ({type(error).__name__}: {error})"[:300])
        else:
            if place.waits:
                self._open(place)
                self._say(f"sampler {place.name} has the weights that it waited for")

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
                self.places.rests(place)
                continue
            try:
                async with asyncio.timeout(CANCEL_S):
                    seen = await place.sampler.load()
            except Exception:
                self.failures["poll"] += 1
            else:
                self.places.told(place, seen, now())
                self._queue.serve()
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
        if place.waits or not place.fenced:
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
            self._queue.serve()
            return
        if len(self.places) > self._limits.least_samplers:
            self.leave(place.name, place.fenced)
            return
        try:
            async with asyncio.timeout(self._limits.ready_timeout_s):
                await place.sampler.revive()
            self.places.renew(place)
            if await self._seat(place):
                self._say(f"sampler {place.name} is back")
        except Exception as error:  # tried again at the next round
            self.failures[f"revive: {type(error).__name__}"] += 1
            self._say(f"sampler {place.name} could not be revived: {type(error).__name__}: {error}"[:300])
