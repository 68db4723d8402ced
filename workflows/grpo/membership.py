"""Samplers that join and leave while a run lasts.

    recruit --as soon as there is room--> add --the newest weights--> join      (dispatch.Fleet)
        ^                                                               |
        +------------ fewer than `most` belong to the fleet ------------+---- its process or node is gone --> leave

One sampler is on offer at a time, as long as there may be more: where the cluster has no room for it, the offer waits,
and tells an autoscaler by waiting that a node is wanted. A sampler that dies while there are more than `least` leaves
(`dispatch.py` sees to it), and the next offer takes its place when there is room again.

Always true: a sampler that came is given episodes only with the newest weights, for whose next version it waits where
they go from GPU to GPU; what could not be started, or could not load them, is ended, and tried again after a pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workflows.grpo.dispatch import Fleet
from workflows.grpo.ports import Recruiter, Sampler

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 120.0  # after one that could not be started; doubled in a row
DISMISS_S = 60.0  # for a sampler that has left to end


class Membership:
    """Keeps a fleet at up to `most` samplers."""

    def __init__(self, fleet: Fleet, recruiter: Recruiter, most: int, say: Callable[[str], None]) -> None:
        self._fleet, self._recruiter, self._most, self._say = fleet, recruiter, most, say
        self._missing = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        fleet.on_leave = self._left

    async def run(self) -> None:
        """For ever. One that is on offer when this is cancelled is given up."""
        pause = FIRST_PAUSE_S
        while True:
            while len(self._fleet.places) >= self._most:
                self._missing.clear()
                await self._missing.wait()
            try:
                await self._welcome(await self._recruiter.recruit())
                pause = FIRST_PAUSE_S
            except Exception as error:  # whatever kept it from starting may be gone the next time
                self._say(f"a further sampler could not start: {type(error).__name__}: {error}"[:300])
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE_S, 2 * pause)

    async def _welcome(self, sampler: Sampler) -> None:
        """Raise what its loading of the weights raises; it has left again by then."""
        self._fleet.add(sampler)
        try:
            seated = await self._fleet.join(sampler.name)
        except BaseException as error:
            self._fleet.leave(sampler.name, f"could not load the weights ({type(error).__name__})")
            raise
        if seated:
            self._say(f"sampler {sampler.name} has joined; there are {len(self._fleet.places)}")

    def _left(self, sampler: Sampler) -> None:
        task = asyncio.create_task(self._dismiss(sampler), name=f"end of {sampler.name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        self._missing.set()

    async def _dismiss(self, sampler: Sampler) -> None:
        try:
            async with asyncio.timeout(DISMISS_S):
                await self._recruiter.dismiss(sampler)
        except Exception as error:  # it is given nothing any more; the end of the run ends what is left of it
            self._say(f"sampler {sampler.name} could not be ended: {type(error).__name__}: {error}"[:300])
