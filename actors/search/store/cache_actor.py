"""One cache for all workers of a run: an actor with the answers on disk, and the door to it from a worker.

Always true: methods that carry news (`keep`, `fail`, `renew`) never queue behind lookups that wait; all methods run on
one event loop (Ray gives each concurrency group a loop of its own, so there is but one group); and of the door, that
every call ends, with what the actor said or with `CacheUnreachable`. `shared_cache` draws how the two sides meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from actors.agent.seams import Clock
from actors.search.store.answers import AnswerStore
from actors.search.store.flights import Claim, Flights, Told
from actors.search.store.records import Answer
from actors.search.store.settings import CacheSettings
from cluster.storage import Folder

FORMAT = "1"  # of answers' bytes; another one finds nothing
CALLS = 100_000  # at once, more than a cluster's workers make: lookups wait here for the news that ends their waiting


@dataclass(frozen=True)
class Hit:
    """`seconds`: how long the answer may still be given. `waited`: a sibling asked for it just now."""

    answer: Answer
    seconds: float
    waited: bool = False


@dataclass(frozen=True)
class CacheStats:
    """Since the actor started, but for `answers` and `bytes`, which are what is on disk."""

    hits: int = 0
    waited: int = 0  # lookups that were answered by a sibling's request
    misses: int = 0  # lookups that had to ask: claims given, and waits that were in vain
    kept: int = 0
    lapsed: int = 0  # claims whose owner fell silent
    answers: int = 0
    bytes: int = 0
    evicted: int = 0
    expired: int = 0


class CacheUnreachable(Exception):
    """The cache is dead, or silent, or failed."""


class AnswerDoor(Protocol):
    """The cache as a worker sees it. Every method may raise CacheUnreachable."""

    async def lookup(self, key: str, wait_s: float) -> Hit | Claim | Told | None:
        """The answer, or the right to ask for all, or the error that its owner met; None when `wait_s` brought none."""
        ...

    async def keep(self, key: str, answer: Answer, ttl_s: float) -> None:
        """Store the answer and give it to all who wait for it."""
        ...

    async def fail(self, key: str, token: str, error: Exception | None) -> None:
        """Give the claim `token` back; `error` is for those who wait now, None lets the next one ask."""
        ...

    async def renew(self, key: str, token: str) -> bool:
        """Tell that the owner of the claim `token` lives. False: it has it no more."""
        ...


# --- the actor ----------------------------------------------------------------------------------------------


class AnswerCache:
    """An AnswerDoor; the actor's class."""

    def __init__(self, settings: CacheSettings, *, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        version = f"{FORMAT}:{settings.version}"
        self._store = AnswerStore(settings.folder, int(settings.max_mib * (1 << 20)), version)
        self._flights = Flights(settings.claim_s, clock)
        self._wall, self._ttl_s = wall, settings.ttl_s
        self._hits = self._waited = self._misses = self._kept = 0

    async def lookup(self, key: str, wait_s: float) -> Hit | Claim | Told | None:
        stored = self._store.get(key, self._wall())
        if stored is not None:
            self._hits += 1
            return Hit(stored.answer, stored.seconds)
        turn = await self._flights.turn(key, wait_s)
        if isinstance(turn, Answer):
            self._waited += 1
            return Hit(turn, self._ttl_s, waited=True)
        self._misses += not isinstance(turn, Told)
        return turn

    async def keep(self, key: str, answer: Answer, ttl_s: float) -> None:
        self._kept += self._store.put(key, answer, self._wall(), ttl_s)
        self._flights.land(key, answer)

    async def fail(self, key: str, token: str, error: Exception | None) -> None:
        self._flights.fail(key, token, error)

    async def renew(self, key: str, token: str) -> bool:
        return self._flights.renew(key, token)

    async def stats(self) -> CacheStats:
        counts = self._store.counts
        return CacheStats(
            hits=self._hits,
            waited=self._waited,
            misses=self._misses,
            kept=self._kept,
            lapsed=self._flights.lapsed,
            answers=counts.answers,
            bytes=counts.bytes,
            evicted=counts.evicted,
            expired=counts.expired,
        )

    async def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()


def cache_name(run: str, folder: str) -> str:
    """The actor's name in the run's namespace: one per run and folder."""
    return f"answers:{run}:{hashlib.sha256(folder.encode()).hexdigest()[:12]}"


def start_answer_cache(settings: CacheSettings, run: str) -> Any:
    """The handle of the AnswerCache actor of this run and folder, started where there is none yet.

    On this machine as long as it lives, since the folder is here. The caller owns an actor that it started: unless
    `settings.detached`, it ends with the caller's process. Raises UserError for a folder that cannot be written to.
    """
    folder = Folder(settings.folder)
    folder.local_path  # noqa: B018 - refuses an address that is no local folder
    folder.ensure_writable()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(AnswerCache)
        .options(
            name=cache_name(run, folder.address),
            get_if_exists=True,
            lifetime="detached" if settings.detached else None,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=CALLS,
            scheduling_strategy=here,
        )
        .remote(settings)
    )


class RemoteAnswers:
    """The actor as an AnswerDoor. Every call ends within `rpc_s` seconds beyond what it was told to wait."""

    def __init__(self, handle: Any, rpc_s: float) -> None:
        self._handle, self._rpc_s = handle, rpc_s

    async def lookup(self, key: str, wait_s: float) -> Hit | Claim | Told | None:
        return await self._answer(lambda: self._handle.lookup.remote(key, wait_s), wait_s + self._rpc_s)

    async def keep(self, key: str, answer: Answer, ttl_s: float) -> None:
        await self._answer(lambda: self._handle.keep.remote(key, answer, ttl_s), self._rpc_s)

    async def fail(self, key: str, token: str, error: Exception | None) -> None:
        await self._answer(lambda: self._handle.fail.remote(key, token, error), self._rpc_s)

    async def renew(self, key: str, token: str) -> bool:
        return await self._answer(lambda: self._handle.renew.remote(key, token), self._rpc_s)

    async def _answer(self, submit: Callable[[], Any], within_s: float) -> Any:
        try:
            return await asyncio.wait_for(submit(), within_s)
        except TimeoutError as error:
            raise CacheUnreachable(f"no answer within {within_s:g} s") from error
        except RayError as error:
            raise CacheUnreachable(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
