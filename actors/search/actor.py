"""The gateway as Ray actors, and the pool of them as one Toolbox.

One worker sustains hundreds of calls in flight: it mostly waits. Several are for processors (pictures,
indexes) and for surviving one another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray

from actors.agent.seams import ImageStore
from actors.agent.trajectory import Outcome, ToolRequest, ToolResult
from actors.search.build import build_gateway, provider_class
from actors.search.gateway import Gateway
from actors.search.ledger import Totals, merged
from actors.search.load import LoadSample
from actors.search.settings import SearchSettings
from actors.search.store.cache_actor import RemoteAnswers
from cluster.actor_pool import ActorPool, NoActorAnswered
from cluster.collector import collect_rarely

MAX_CONCURRENCY = 10_000  # calls that a worker accepts at a time; its pool's questions must get through beside them


class SearchWorker:
    """A gateway in a process of its own."""

    def __init__(self, settings: SearchSettings, images: ImageStore, cache: Any = None) -> None:
        """`cache`: the AnswerCache actor of the run; None where each worker remembers for itself."""
        self._made_of = (settings, images, None if cache is None else RemoteAnswers(cache, settings.cache.rpc_s))
        self._calls = 0

    @cached_property
    def _gateway(self) -> Gateway:
        """Made by the first method that wants it: what a method raises arrives as it is, a constructor's does not."""
        return build_gateway(*self._made_of)

    async def ready(self) -> None:
        """Returns once the worker has made its providers, and the brokers of their quotas answer."""
        await self._gateway.open()
        collect_rarely()

    async def call(self, request: ToolRequest, seconds_left: float) -> ToolResult:
        """As `Toolbox.call`, with the time that is left in place of a deadline: clocks differ between machines."""
        self._calls += 1
        try:
            return await self._gateway.call(request, deadline=time.monotonic() + seconds_left)
        finally:
            self._calls -= 1

    async def load(self) -> LoadSample:
        """What keeps this worker busy now."""
        return replace(self._gateway.load(), calls=self._calls)

    async def totals(self) -> Totals:
        """Sums of the ledger since this process started."""
        return self._gateway.totals

    async def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()

    async def close(self) -> None:
        """Write what was recorded, and tell the quotas what was used; before the process is ended."""
        await self._gateway.close()


def check_providers(settings: SearchSettings) -> None:
    """Raise UserError here, not in an actor far away, for a provider that cannot be imported."""
    for provider in settings.endpoints():
        provider_class(provider)


def start_search_worker(settings: SearchSettings, images: ImageStore, cache: Any = None) -> Any:
    """The handle of a SearchWorker actor. One whose process dies is started again by Ray, under the same handle."""
    options = ray.remote(SearchWorker).options(
        num_cpus=settings.pool.cpus, max_restarts=-1, max_concurrency=MAX_CONCURRENCY
    )
    return options.remote(settings, images, cache)


def start_search_workers(settings: SearchSettings, images: ImageStore, cache: Any = None) -> list[Any]:
    """Handles of `settings.pool.min` SearchWorker actors. Ray must be running; `images` must survive pickling.

    Raises UserError as `check_providers`.
    """
    check_providers(settings)
    return [start_search_worker(settings, images, cache) for _ in range(settings.pool.min)]


class RemoteToolbox:
    """The agent's Toolbox over SearchWorker actors: `handles`, or those that `pool`, a SearchPool actor, names. Can be
    pickled."""

    def __init__(self, handles: Sequence[Any] = (), pool: Any = None) -> None:
        self._pool, self._directory = ActorPool(handles, pool), pool

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """As `Gateway.call`; `deadline` is a time of this process's time.monotonic.

        A worker that dies is replaced by the next one; when none answers in time, that is an infra_error.
        """
        started = time.monotonic()
        try:
            return await self._pool.call(
                lambda worker, seconds_left: worker.call.remote(request, seconds_left), deadline=deadline
            )
        except NoActorAnswered as error:
            message = f"no search worker answered: {error}"
            return ToolResult(Outcome.INFRA_ERROR, message=message, latency_s=time.monotonic() - started)

    def close(self) -> None:
        """Stop listening to the pool; in every process that called, before it leaves Ray."""
        self._pool.close()

    async def totals(self, timeout: float = 10.0) -> Totals:
        """The ledgers of all workers, summed; those that do not answer within `timeout` seconds are left out."""
        parts: list[Totals] = []
        # a pool also knows what workers did that have gone
        for handle in [self._directory] if self._directory is not None else self._pool.handles:
            try:
                one = ActorPool([handle])
                parts.append(
                    await one.call(lambda worker, _: worker.totals.remote(), deadline=time.monotonic() + timeout)
                )
            except NoActorAnswered:
                continue
        return merged(parts)
