"""A pool of search workers that follows the load, and the directory by which callers find them.

    coming --ready--> serving --too many--> leaving --idle, or drain_s are over--> gone
                         ^                     |
                         +------too few--------+

Always true:
- the directory names exactly the workers that serve; one that leaves is out of it before anything else happens to it;
- a worker is ended when it has nothing to do, or `drain_s` seconds after it left, whichever is first; a call that is
  cut off then, or by a death, is made again by its caller, on another worker;
- a death is mended in one place. A process that dies is started again by Ray (`max_restarts=-1`) under the handle that
  everybody has, and nothing here changes. A worker that Ray has given up is replaced here. Workers belong to the
  pool's process: when that dies, Ray ends them and starts it again, and it begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError, RayError, RayTaskError

from actors.agent.seams import Clock, ImageStore
from actors.search.actor import (
    MAX_CONCURRENCY,
    RemoteToolbox,
    check_providers,
    start_search_worker,
    start_search_workers,
)
from actors.search.ledger import Totals, merged
from actors.search.load import LoadSample
from actors.search.load import merged as load_of_all
from actors.search.scaling import ScalingPolicy
from actors.search.settings import PoolSettings, SearchSettings
from actors.search.store.cache_actor import start_answer_cache

log = logging.getLogger(__name__)
ANSWER_S = 1.0  # seconds for a worker to tell its load
HEARD_S = 2.0  # seconds after which callers know a new directory
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds after a worker that could not be started; doubled in a row
CLOSE_S = 10.0  # seconds for workers to write what is to outlive them, and again for a pool to end them
GONE = (ActorDiedError, ActorUnschedulableError)  # what Ray says of an actor that it has given up


@dataclass(eq=False)
class _Worker:
    handle: Any
    coming: asyncio.Task[None] | None = None
    load: LoadSample = field(default_factory=LoadSample)
    left_at: float | None = None

    @property
    def serves(self) -> bool:
        return self.coming is None and self.left_at is None


@dataclass(frozen=True)
class PoolStanding:
    """How many workers there are, by state, and how many there should be."""

    coming: int
    serving: int
    leaving: int
    target: int
    load: LoadSample


class WorkerPool:
    """The workers of a pool. For one event loop; knows of Ray no more than how its handles behave.

    `start` gives the handle of a new worker, `end` ends one; `ahead` is told how many more will be needed.
    """

    def __init__(
        self,
        settings: PoolSettings,
        start: Callable[[], Any],
        end: Callable[[Any], None],
        ahead: Callable[[int], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings, self._start, self._end, self._ahead, self._clock = settings, start, end, ahead, clock
        self._policy = ScalingPolicy(settings)
        self._workers: list[_Worker] = []
        self._target = settings.min
        self._version = time.time_ns()  # unlike any version of a pool before this one
        self._named: tuple[Any, ...] = ()
        self._news = asyncio.Event()
        self._problem: Exception | None = None
        self._failures, self._start_again = 0, -math.inf
        self._asked_ahead = 0
        self._of_the_gone = Totals()

    # --- what callers ask -----------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Returns once `min` workers serve. Raises what keeps one from starting."""
        while len(self._serving) < self._settings.min:
            if self._problem is not None:
                raise self._problem
            await self._news.wait()

    async def members(self, known_version: int, wait_s: float) -> tuple[int, tuple[Any, ...]]:
        """Version and handles of those that serve, as soon as the version is not `known_version`."""
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                while self._version == known_version:
                    await self._news.wait()
        except TimeoutError:
            pass
        return self._version, self._named

    async def totals(self) -> Totals:
        """The ledgers of all workers since the pool began; those silent for `ANSWER_S` seconds are left out."""
        here = [worker for worker in self._workers if worker.coming is None]
        return merged([self._of_the_gone, *await _all_totals(here)])

    def standing(self) -> PoolStanding:
        coming = sum(worker.coming is not None for worker in self._workers)
        leaving = sum(worker.left_at is not None for worker in self._workers)
        load = load_of_all(worker.load for worker in self._workers)
        return PoolStanding(coming, len(self._serving), leaving, self._target, load)

    async def close(self) -> None:
        """End all workers, whatever they do."""
        workers, self._workers = self._workers, []
        self._publish()
        await _closed([worker.handle for worker in workers if worker.coming is None])
        for worker in workers:
            self._dismiss(worker)
        if self._ahead is not None and self._asked_ahead:
            await asyncio.to_thread(self._ahead, 0)

    # --- one turn -------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Look at everybody, decide, and take a step towards what was decided."""
        await asyncio.gather(*(self._look_at(worker) for worker in self._workers if not worker.coming))
        load = load_of_all(worker.load for worker in self._workers)
        self._target = self._policy.decide(self._clock(), self._target, load)
        self._grow()
        self._shrink()
        self._publish()
        await self._end_the_leaving()
        if self._ahead is not None:
            more = max(self._target, self._policy.wanted(load)) - len(self._workers)
            if max(0, more) != self._asked_ahead:
                self._asked_ahead = max(0, more)
                await asyncio.to_thread(self._ahead, self._asked_ahead)

    async def _look_at(self, worker: _Worker) -> None:
        try:
            worker.load = await asyncio.wait_for(worker.handle.load.remote(), ANSWER_S)
        except GONE as error:
            self._lose(worker, error)
        except RayError:
            worker.load = LoadSample()  # Ray starts it again; its calls have gone to others
        except TimeoutError:
            pass  # too busy to tell: what it told last stands

    def _grow(self) -> None:
        """Those that were leaving come back first: they are here, and warm."""
        missing = self._target - len(self._staying)
        leaving = [worker for worker in self._workers if worker.left_at is not None]
        for worker in leaving[: max(0, missing)]:
            worker.left_at = None
            missing -= 1
        if self._clock() < self._start_again:
            return
        for _ in range(missing):
            worker = _Worker(self._start())
            worker.coming = asyncio.create_task(self._welcome(worker))
            self._workers.append(worker)

    def _shrink(self) -> None:
        """Those that have not come yet go first, then those with the fewest calls."""
        surplus = len(self._staying) - self._target
        by_use = sorted(self._staying, key=lambda worker: (worker.coming is None, worker.load.calls))
        for worker in by_use[: max(0, surplus)]:
            if worker.coming is not None:
                self._workers.remove(worker)
                self._dismiss(worker)
            else:
                worker.left_at = self._clock()

    async def _end_the_leaving(self) -> None:
        ending = [worker for worker in self._workers if worker.left_at is not None and self._may_end(worker)]
        self._workers = [worker for worker in self._workers if worker not in ending]
        self._of_the_gone = merged([self._of_the_gone, *await _all_totals(ending)])
        await _closed([worker.handle for worker in ending])
        for worker in ending:
            self._dismiss(worker)

    def _may_end(self, worker: _Worker) -> bool:
        left = self._clock() - (worker.left_at or 0.0)
        return left >= self._settings.drain_s or (left >= HEARD_S and worker.load.idle)

    # --- coming and going -----------------------------------------------------------------------------------

    async def _welcome(self, worker: _Worker) -> None:
        try:
            await worker.handle.ready.remote()
        except RayError as error:
            self._end(worker.handle)  # where Ray has not given it up yet
            self._lose(worker, error.cause if isinstance(error, RayTaskError) else error)
            self._failures += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1))
            self._start_again = self._clock() + pause
        else:
            worker.coming, self._problem, self._failures = None, None, 0
            self._publish()

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """Ray has given it up; the next turn starts another."""
        log.warning("a search worker is lost: %s", error)
        self._workers = [other for other in self._workers if other is not worker]
        self._problem = error
        self._publish(anyhow=True)

    def _dismiss(self, worker: _Worker) -> None:
        if worker.coming is not None:
            worker.coming.cancel()
        self._end(worker.handle)

    def _publish(self, *, anyhow: bool = False) -> None:
        """Wake those who wait, if there is anything new."""
        named = tuple(worker.handle for worker in self._serving)
        if named == self._named and not anyhow:
            return
        self._version, self._named = self._version + 1, named
        news, self._news = self._news, asyncio.Event()
        news.set()

    @property
    def _serving(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.serves]

    @property
    def _staying(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.left_at is None]


async def _all_totals(workers: Sequence[_Worker]) -> list[Totals]:
    async def one(worker: _Worker) -> Totals:
        try:
            return await asyncio.wait_for(worker.handle.totals.remote(), ANSWER_S)
        except (RayError, TimeoutError):
            return Totals()

    return await asyncio.gather(*(one(worker) for worker in workers))


async def _closed(workers: Sequence[Any]) -> None:
    """All of them have closed, or have had `CLOSE_S` seconds for it."""
    endings = [asyncio.ensure_future(worker.close.remote()) for worker in workers]
    if endings:
        await asyncio.wait(endings, timeout=CLOSE_S)
    for ending in endings:
        if not ending.cancel() and not ending.cancelled() and (error := ending.exception()) is not None:
            log.warning("a search worker ends without having closed: %s", error)


class SearchPool:
    """A WorkerPool of SearchWorker actors, in a process of its own. Becomes an actor where it is started."""

    def __init__(self, settings: SearchSettings, images: ImageStore, cache: Any = None) -> None:
        self._settings = settings.pool
        self._pool = WorkerPool(
            settings.pool,
            start=lambda: start_search_worker(settings, images, cache),
            end=lambda worker: ray.kill(worker, no_restart=True),
            ahead=self._ask_cluster if settings.pool.ask_cluster else None,
        )
        self._turning: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """As `WorkerPool.ready`."""
        await self._begun(self._pool.ready())

    async def members(self, known_version: int, wait_s: float) -> tuple[int, tuple[Any, ...]]:
        """As `WorkerPool.members`."""
        return await self._begun(self._pool.members(known_version, wait_s))

    async def totals(self) -> Totals:
        """As `WorkerPool.totals`."""
        return await self._pool.totals()

    async def standing(self) -> PoolStanding:
        """As `WorkerPool.standing`."""
        return self._pool.standing()

    async def close(self) -> None:
        """End all workers; nothing is started any more."""
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.wait([self._turning])
        await self._pool.close()

    async def _begun(self, question: Coroutine[Any, Any, Any]) -> Any:
        """Ask the pool, which turns from the first question on, also after a restart of this process."""
        if self._turning is None:
            self._turning = asyncio.create_task(self._turn_for_ever())
        return await question

    async def _turn_for_ever(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._pool.turn()
            except Exception:  # the pool stays as it is; without this loop nobody would ever mend it
                log.exception("a turn of the search pool failed")
            await asyncio.sleep(max(0.0, self._settings.every_s - (time.monotonic() - began)))

    def _ask_cluster(self, more: int) -> None:
        from ray.autoscaler.sdk import request_resources

        total, free = ray.cluster_resources(), ray.available_resources()
        held = {name: total.get(name, 0.0) - free.get(name, 0.0) for name in ("CPU", "GPU")}
        request_resources(bundles=bundles_ahead(held, more, self._settings.cpus))


def bundles_ahead(held: Mapping[str, float], more: int, cpus: float) -> list[dict[str, float]]:
    """What a cluster must have for `more` workers beside what is `held`: an autoscaler compares with the whole of it.

    Empty, which takes an earlier hint back, when nothing more is needed.
    """
    if not more or not cpus:
        return []
    in_use = [{name: 1.0} for name, amount in held.items() for _ in range(math.ceil(amount - 1e-6))]
    return in_use + [{"CPU": cpus}] * more


class Searchers:
    """The search workers of a run, and the toolbox over them: a fixed few, or a pool that follows the load."""

    def __init__(self, settings: SearchSettings, images: ImageStore) -> None:
        """Raises UserError as `check_providers`. Ray must be running; `images` must survive pickling."""
        check_providers(settings)
        fixed = settings.pool.min == settings.pool.max
        # the cache lives as long as this object's process: a worker's would end with the worker
        self._cache = start_answer_cache(settings.cache, "") if settings.cache.folder else None
        self._workers = start_search_workers(settings, images, self._cache) if fixed else []
        self._pool = None if fixed else start_search_pool(settings, images, self._cache)
        self.toolbox = RemoteToolbox(self._workers, self._pool)

    async def ready(self) -> None:
        """Returns once `min` workers serve. Raises what the construction of one raised."""
        actors = self._workers if self._pool is None else [self._pool]
        await asyncio.gather(*(actor.ready.remote() for actor in actors))

    async def standing(self) -> PoolStanding:
        """How many workers there are now."""
        if self._pool is None:
            return PoolStanding(0, len(self._workers), 0, len(self._workers), LoadSample())
        return await self._pool.standing.remote()

    async def members(self) -> tuple[Any, ...]:
        """Handles of the workers that serve now."""
        return tuple(self._workers) if self._pool is None else (await self._pool.members.remote(0, 0.0))[1]

    async def close(self) -> None:
        """End all workers, whatever they do, once they have written what is to outlive them, or had the time to."""
        self.toolbox.close()
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close.remote(), 2 * CLOSE_S)
            except (RayError, TimeoutError) as error:
                log.warning("the search pool ends without having closed: %s", error)
            finally:
                ray.kill(self._pool)  # and with it, Ray ends what is left of its workers
        await _closed(self._workers)
        for worker in self._workers:
            ray.kill(worker)


def start_search_pool(settings: SearchSettings, images: ImageStore, cache: Any = None) -> Any:
    """The handle of a SearchPool actor. It ends, with its workers, when whoever started it does."""
    options = ray.remote(SearchPool).options(num_cpus=0, max_restarts=-1, max_concurrency=MAX_CONCURRENCY)
    return options.remote(settings, images, cache)
