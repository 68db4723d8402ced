"""Interchangeable actors as one: the least loaded is asked, and when it dies the call goes to another.

Always true: a call ends with an actor's answer, with the error that the actor's method raised, or, at its
deadline, with `NoActorAnswered`. A call may run twice when an actor dies late, so methods called through a pool
must be idempotent. Deadlines do not cross machines: what travels is the time that is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError

Submit = Callable[[Any, float], Any]  # (actor handle, seconds left) -> ObjectRef
FIRST_WAIT = 0.05  # seconds after every actor has failed once; doubled from then on
LONGEST_WAIT = 2.0  # seconds; a restarting actor needs about that
SHUN = 1.0  # seconds for which an actor that just failed is asked last


class NoActorAnswered(RuntimeError):
    """Every actor was dead or silent until the deadline: an infrastructure failure."""


class ActorPool:
    """Calls on `handles`. For one event loop; pickled without its counts, which are the process's own."""

    def __init__(
        self,
        handles: Sequence[Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not handles:
            raise ValueError("a pool needs at least one actor")
        self.handles = tuple(handles)
        self._clock, self._sleep = clock, sleep
        self._in_flight = [0] * len(self.handles)
        self._shunned_until = [float("-inf")] * len(self.handles)
        self._turn = 0

    def __reduce__(self):
        return (ActorPool, (self.handles,))

    async def call(self, submit: Submit, *, deadline: float) -> Any:
        """The answer of one actor before `deadline` (time.monotonic seconds).

        Raises what the actor's method raised, as it was raised there, or NoActorAnswered.
        """
        tried: set[int] = set()
        wait, problem = FIRST_WAIT, "no time was left to ask"
        while (left := deadline - self._clock()) > 0:
            if len(tried) == len(self.handles):
                await self._sleep(min(wait, left))
                wait = min(2 * wait, LONGEST_WAIT)
                tried.clear()
                continue
            chosen = self._least_loaded(tried)
            tried.add(chosen)
            self._in_flight[chosen] += 1
            try:
                return await asyncio.wait_for(submit(self.handles[chosen], left), left)
            except RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, Exception) else error) from error
            except RayError as error:
                problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                self._shunned_until[chosen] = self._clock() + SHUN
            except TimeoutError:
                problem = f"no answer within {left:.1f} s"
            finally:
                self._in_flight[chosen] -= 1
        raise NoActorAnswered(problem)

    def _least_loaded(self, tried: set[int]) -> int:
        """The actor to ask: not just failed, then fewest calls in flight, then whose turn it is."""
        now, n, turn = self._clock(), len(self.handles), self._turn
        self._turn = (turn + 1) % n
        return min(
            (i for i in range(n) if i not in tried),
            key=lambda i: (self._shunned_until[i] > now, self._in_flight[i], (i - turn) % n),
        )
