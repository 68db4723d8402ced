"""The worker's side of the shared cache: in memory first, then what all workers know, then the world.

    worker: SharedCache.get --- in memory? ---> value
                 |  one flight per key and process
                 v
    actor:  AnswerCache.lookup --- on disk? ---> Hit
                 |  one claim per key and run
                 v
    worker: compute, then keep or fail, which ends the others' lookups

Always true: a failure of the cache never fails a search. Who does not get a word from the actor in time computes the
answer, and leaves the actor alone for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from actors.agent.seams import Clock, ImageMissing, ImageRefused
from actors.search.cache import SingleFlightCache
from actors.search.endpoints import Sleep
from actors.search.seams import ProviderError
from actors.search.store.cache_actor import AnswerDoor, CacheUnreachable, Hit
from actors.search.store.flights import Claim, Told
from actors.search.store.records import Answer, Codec, Remembered, Unreadable, found_nothing
from actors.search.store.settings import CacheSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

SHUN_S = 1.0  # seconds for which a cache that failed is done without
RENEWALS = 3  # within the time after which a silent owner is taken for dead
TELLABLE = (ProviderError, ImageRefused, ImageMissing)  # what siblings would meet as well; other errors are one's own


@dataclass(frozen=True)
class _Kept(Generic[T]):
    value: T
    shared: bool  # it cost this process nothing
    until: float


class _Front(SingleFlightCache[_Kept[T]]):
    """In memory, with a time to live."""

    def __init__(self, entries: int, clock: Clock) -> None:
        super().__init__(entries)
        self._clock = clock

    async def get(self, key: str, compute: Callable[[], Awaitable[_Kept[T]]]) -> tuple[_Kept[T], bool]:
        kept = self._answers.get(key)
        if kept is not None and kept.until <= self._clock():
            del self._answers[key]
        return await super().get(key, compute)


class SharedCache(Generic[T]):
    """As SingleFlightCache, for the worker's process and, through `door`, for all workers of the run.

    `T` is one of the values that `Codec` knows. Without a door it is a cache in memory with a time to live. For one
    event loop.
    """

    def __init__(
        self,
        settings: CacheSettings,
        codec: Codec,
        door: AnswerDoor | None = None,
        *,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._settings, self._codec, self._door = settings, codec, door
        self._clock, self._wall, self._sleep = clock, wall, sleep
        self._front: _Front[T] = _Front(settings.entries, clock)
        self._shunned_until, self._told = float("-inf"), False
        self._news: set[asyncio.Task[None]] = set()

    async def get(self, key: str, compute: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The answer to `key`, and whether it cost this caller nothing: remembered, or asked by a sibling anywhere.

        Raises what `compute` raises, here or where a sibling ran it. `compute` runs in a task of its own and must bound
        its own time.
        """
        kept, beside = await self._front.get(key, lambda: self._far(key, compute))
        return kept.value, beside or kept.shared

    @property
    def following(self) -> int:
        """Callers that wait for what a sibling of this process has asked."""
        return self._front.following

    async def close(self) -> None:
        """Cancel what is under way, and give the claims back."""
        await self._front.close()
        if self._news:
            await asyncio.wait(set(self._news), timeout=self._settings.rpc_s)
        for task in list(self._news):
            task.cancel()

    async def _far(self, key: str, compute: Callable[[], Awaitable[T]]) -> _Kept[T]:
        turn = await self._reached(lambda door: door.lookup(key, self._settings.wait_s))
        if isinstance(turn, Told):
            raise turn.error
        if isinstance(turn, Hit):
            try:
                value = await self._decoded(turn.answer)
            except (Unreadable, OSError) as error:
                log.warning("a shared answer cannot be read and is asked for anew: %s", error)
            else:
                seconds = min(turn.seconds, self._ttl_s(value))
                return _Kept(cast(T, value), True, self._clock() + seconds)
        claim = turn if isinstance(turn, Claim) else None
        return await self._asked(key, compute, claim)

    async def _asked(self, key: str, compute: Callable[[], Awaitable[T]], claim: Claim | None) -> _Kept[T]:
        """Compute the answer, for all where there is a claim."""
        started = self._clock()
        renewing = asyncio.create_task(self._renew(key, claim)) if claim else None
        try:
            value = await compute()
        except BaseException as error:
            if claim is not None:
                told, token = (error if isinstance(error, TELLABLE) else None), claim.token
                self._later(lambda door: door.fail(key, token, told))
            raise
        finally:
            if renewing is not None:
                renewing.cancel()
        self._tell(key, cast(Remembered, value), self._clock() - started, claim)
        return _Kept(value, False, self._clock() + self._ttl_s(cast(Remembered, value)))

    async def _decoded(self, answer: Answer) -> Remembered:
        if answer.blobs:  # pictures are decoded and written
            return await asyncio.to_thread(self._codec.decode, answer, ours=True)
        return self._codec.decode(answer, ours=True)

    def _ttl_s(self, value: Remembered) -> float:
        return self._settings.negative_ttl_s if found_nothing(value) else self._settings.ttl_s

    # --- messages to the actor ------------------------------------------------------------------------------

    def _tell(self, key: str, value: Remembered, latency_s: float, claim: Claim | None) -> None:
        """Share the answer; its caller does not wait for that."""

        async def keep(door: AnswerDoor) -> None:
            try:
                answer = await asyncio.to_thread(self._codec.encode, value, at=self._wall(), latency_s=latency_s)
            except (ValueError, OSError, ImageMissing) as error:
                log.warning("an answer cannot be shared: %s", error)
                if claim is not None:
                    await door.fail(key, claim.token, None)
            else:
                await door.keep(key, answer, self._ttl_s(value))

        self._later(keep)

    async def _renew(self, key: str, claim: Claim) -> None:
        while True:
            await self._sleep(claim.seconds / RENEWALS)
            if await self._reached(lambda door: door.renew(key, claim.token)) is False:
                return

    def _later(self, message: Callable[[AnswerDoor], Coroutine[Any, Any, None]]) -> None:
        if self._door is None:
            return
        task = asyncio.create_task(self._reached(message))
        self._news.add(task)
        task.add_done_callback(self._news.discard)

    async def _reached(self, message: Callable[[AnswerDoor], Awaitable[Any]]) -> Any:
        """What the actor says; None when there is none, or it does not answer now."""
        if self._door is None or self._clock() < self._shunned_until:
            return None
        try:
            said = await message(self._door)
        except CacheUnreachable as error:
            if not self._told:
                log.warning("the shared cache does not answer, and is done without until it does: %s", error)
            self._told, self._shunned_until = True, self._clock() + SHUN_S
            return None
        self._told = False
        return said
