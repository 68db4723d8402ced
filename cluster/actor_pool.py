"""Interchangeable actors as one: the least loaded is asked, and when it dies the call goes to another.

Always true: a call ends with an actor's answer, with the error that the actor's method raised, or, at its
deadline, with `NoActorAnswered`. A call may run twice when an actor dies late, so methods called through a pool
must be idempotent. Deadlines do not cross machines: what travels is the time that is left.

Who the actors are is fixed, or a directory says it: an actor whose method `members(known_version, wait_s)` returns
`(version, handles)` as soon as the version is another one than `known_version`, or after `wait_s` seconds. It is asked
in the background, never on the way of a call, and one that is dead or silent leaves the handles that are known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError, RayTaskError

Submit = Callable[[Any, float], Any]  # (actor handle, seconds left) -> ObjectRef
FIRST_WAIT = 0.05  # seconds after every actor has failed once; doubled from then on
LONGEST_WAIT = 2.0  # seconds; a restarting actor needs about that
SHUN = 1.0  # seconds for which an actor that just failed is asked last
POLL = 10.0  # seconds that one question to the directory may stay open
POLL_GRACE = 5.0  # seconds beyond that for its answer to come
FOLLOWED = 60.0  # seconds after its last call for which a pool follows its directory


class NoActorAnswered(RuntimeError):
    """Every actor was dead or silent until the deadline: an infrastructure failure."""


@dataclass(eq=False)
class _Seat:
    """An actor and what this process knows of it."""

    handle: Any
    in_flight: int = 0
    shunned_until: float = float("-inf")


class ActorPool:
    """Calls on `handles`, and on those that `directory` names from then on. For one event loop; pickled without its
    counts, which are the process's own."""

    def __init__(
        self,
        handles: Sequence[Any] = (),
        directory: Any = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not handles and directory is None:
            raise ValueError("a pool needs at least one actor, or a directory that names some")
        self._seats = [_Seat(handle) for handle in handles]
        self._directory, self._version = directory, 0
        self._following: asyncio.Task[None] | None = None
        self._clock, self._sleep = clock, sleep
        self._last_call = self._clock()
        self._turn = 0

    @property
    def handles(self) -> tuple[Any, ...]:
        """The actors that calls go to now."""
        return tuple(seat.handle for seat in self._seats)

    def __reduce__(self):
        return (ActorPool, (self.handles, self._directory))

    async def call(self, submit: Submit, *, deadline: float) -> Any:
        """The answer of one actor before `deadline` (time.monotonic seconds).

        Raises what the actor's method raised, as it was raised there, or NoActorAnswered.
        """
        tried: set[_Seat] = set()
        wait, problem = FIRST_WAIT, "no time was left to ask" if self._seats else "no actor is known yet"
        while (left := deadline - self._clock()) > 0:
            self._follow()
            untried = [seat for seat in self._seats if seat not in tried]
            if not untried:
                await self._sleep(min(wait, left))
                wait = min(2 * wait, LONGEST_WAIT)
                tried.clear()
                continue
            chosen = self._least_loaded(untried)
            tried.add(chosen)
            chosen.in_flight += 1
            try:
                return await asyncio.wait_for(submit(chosen.handle, left), left)
            except RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, Exception) else error) from error
            except RayError as error:
                problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                chosen.shunned_until = self._clock() + SHUN
            except TimeoutError:
                problem = f"no answer within {left:.1f} s"
            finally:
                chosen.in_flight -= 1
        raise NoActorAnswered(problem)

    def close(self) -> None:
        """Follow the directory no longer: Ray is about to be left, and asking it would start it anew."""
        if self._following is not None:
            self._following.cancel()

    def _least_loaded(self, seats: Sequence[_Seat]) -> _Seat:
        """The actor to ask: not just failed, then fewest calls in flight, then whose turn it is."""
        now, n = self._clock(), len(self._seats)
        places = {seat: (place - self._turn) % n for place, seat in enumerate(self._seats)}
        self._turn = (self._turn + 1) % n
        return min(seats, key=lambda seat: (seat.shunned_until > now, seat.in_flight, places[seat]))

    # --- the directory --------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """See that the directory is being asked, as long as there are calls."""
        self._last_call = self._clock()
        if self._directory is not None and (self._following is None or self._following.done()):
            self._following = asyncio.create_task(self._ask_directory())

    async def _ask_directory(self) -> None:
        wait = FIRST_WAIT
        while self._clock() - self._last_call < FOLLOWED:
            try:
                answer = self._directory.members.remote(self._version, POLL)
                version, handles = await asyncio.wait_for(answer, POLL + POLL_GRACE)
            except (RayError, TimeoutError):
                await self._sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            wait, self._version = FIRST_WAIT, version
            if handles:
                known = {seat.handle: seat for seat in self._seats}
                self._seats = [known.get(handle) or _Seat(handle) for handle in handles]
