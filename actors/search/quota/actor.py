"""The broker as a detached Ray actor, one per endpoint and key, shared by all jobs and services of a cluster.

Its name carries the protocol's version: jobs that speak another one get a broker of their own, and with it a journal of
their own; two versions of this project at work on one key should not be, and `mmsearch quota` shows it when they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.search.quota.broker import QuotaBroker, Standing
from actors.search.quota.core import Refusal, Settlement
from actors.search.quota.desk import BrokerUnreachable, LeaseSource, LocalSource
from actors.search.quota.journal import Journal
from actors.search.quota.settings import QuotaSettings
from cluster.collector import collect_rarely
from cluster.runtime import NAMESPACE
from cluster.storage import Folder

log = logging.getLogger(__name__)
PROTOCOL = 1
PREFIX = f"quota.v{PROTOCOL}."
ANSWER_WITHIN = 20.0  # seconds beyond what a request may wait; a broker that restarts needs a few


class QuotaBrokerActor:
    """A QuotaBroker in a process of its own. `folder`: address of the journals, "" for none."""

    def __init__(self, endpoint: str, settings: QuotaSettings, usd_per_call: float, folder: str) -> None:
        self._made_of = (settings, usd_per_call)
        journal = Journal(Folder(folder), endpoint) if folder else None
        self._broker = QuotaBroker(endpoint, settings, usd_per_call, journal)
        collect_rarely()

    async def configure(self, settings: QuotaSettings, usd_per_call: float) -> None:
        """Take over these limits where they differ from those in force."""
        if (settings, usd_per_call) != self._made_of:
            log.warning("quota of %s: the limits are now %s", self._broker.endpoint, settings)
            self._made_of = (settings, usd_per_call)
            self._broker.configure(settings, usd_per_call)

    async def request(self, wanted: int, seconds_left: float) -> tuple[int, ...] | Refusal:
        return await self._broker.request(wanted, seconds_left)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self._broker.settle(settlements)

    async def standing(self) -> Standing:
        return self._broker.standing()

    async def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()

    async def close(self) -> None:
        """Write what was really spent, before the actor is ended in good order."""
        await self._broker.close()


def endpoint_id(name: str, key: str = "") -> str:
    """How broker and journal of an endpoint and key are called; of the key only a digest that cannot be turned back."""
    return f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:10]}" if key else name


class RemoteSource:
    """The broker of an endpoint, wherever on the cluster it lives; made when there is none."""

    def __init__(self, endpoint: str, settings: QuotaSettings, usd_per_call: float, folder: str) -> None:
        actor_class = ray.remote(QuotaBrokerActor)
        self._endpoint = endpoint
        self._broker: Any = actor_class.options(
            name=PREFIX + endpoint,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=1000,
        ).remote(endpoint, settings, usd_per_call, folder)
        self._configured = self._broker.configure.remote(settings, usd_per_call)

    async def open(self) -> None:
        await self._answer(self._configured, 0.0)

    async def request(self, wanted: int, seconds_left: float) -> tuple[int, ...] | Refusal:
        return await self._answer(self._broker.request.remote(wanted, seconds_left), seconds_left)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._answer(self._broker.settle.remote(list(settlements)), 0.0)

    async def close(self) -> None:
        """Nothing: the broker lives on for others."""

    async def _answer(self, reference: Any, seconds: float) -> Any:
        try:
            return await asyncio.wait_for(reference, seconds + ANSWER_WITHIN)
        except RayTaskError:
            raise
        except (RayActorError, RayError, TimeoutError) as error:
            raise BrokerUnreachable(f"the broker of {self._endpoint} does not answer") from error


def lease_source(endpoint: str, settings: QuotaSettings, usd_per_call: float, folder: str) -> LeaseSource:
    """The cluster's broker where Ray runs in this process, else one of this process's own, on the same journal."""
    if ray.is_initialized():
        return RemoteSource(endpoint, settings, usd_per_call, folder)
    journal = Journal(Folder(folder), endpoint) if folder else None
    return LocalSource(QuotaBroker(endpoint, settings, usd_per_call, journal))
