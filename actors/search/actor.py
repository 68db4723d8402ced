"""The gateway as Ray actors, and the pool of them as one Toolbox.

One worker sustains hundreds of calls in flight: it mostly waits. Several are for processors (pictures,
indexes) and for surviving one another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from actors.agent.seams import ImageStore
from actors.agent.trajectory import Outcome, ToolRequest, ToolResult
from actors.search.build import build_gateway, provider_class
from actors.search.ledger import Totals, merged
from actors.search.settings import SearchSettings
from cluster.actor_pool import ActorPool, NoActorAnswered


class SearchWorker:
    """A gateway in a process of its own."""

    def __init__(self, settings: SearchSettings, images: ImageStore) -> None:
        self._gateway = build_gateway(settings, images)

    async def ready(self) -> None:
        """Returns once the worker has made its providers."""

    async def call(self, request: ToolRequest, seconds_left: float) -> ToolResult:
        """As `Toolbox.call`, with the time that is left in place of a deadline: clocks differ between machines."""
        return await self._gateway.call(request, deadline=time.monotonic() + seconds_left)

    async def totals(self) -> Totals:
        """Sums of the ledger since this process started."""
        return self._gateway.ledger.totals


def start_search_workers(settings: SearchSettings, images: ImageStore) -> list[Any]:
    """Handles of `settings.workers` SearchWorker actors. Ray must be running; `images` must survive pickling.

    Raises UserError here, not in an actor far away, for a provider that cannot be imported.
    """
    for provider in (*settings.text, *settings.image, *([settings.grounder] if settings.grounder else [])):
        provider_class(provider)
    actor_class = ray.remote(SearchWorker)
    options = actor_class.options(num_cpus=settings.worker_cpus, max_restarts=-1, max_concurrency=1000)
    return [options.remote(settings, images) for _ in range(settings.workers)]


class RemoteToolbox:
    """The agent's Toolbox over SearchWorker actors. Can be pickled."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self._pool = ActorPool(handles)

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

    async def totals(self, timeout: float = 10.0) -> Totals:
        """The ledgers of all workers, summed; those that do not answer within `timeout` seconds are left out."""
        parts: list[Totals] = []
        for handle in self._pool.handles:
            try:
                one = ActorPool([handle])
                parts.append(
                    await one.call(lambda worker, _: worker.totals.remote(), deadline=time.monotonic() + timeout)
                )
            except NoActorAnswered:
                continue
        return merged(parts)
