"""Keys at the door: who may come in is decided in the ingress, how often and for how much a day at one till for all.

    ingress replica --- name, rate, budget ---> Register (a named Ray actor) --- USD of the day ---> folder

Always true: no key leaves the ingress; rates and budgets hold over all replicas of it, and a budget also over the end
of the till, whose journal is a file of the folder; a till that does not answer lets nobody in. It is asked once a
request, and never where no keys are configured.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.collector import collect_rarely
from cluster.errors import UserError
from cluster.runtime import NAMESPACE
from cluster.storage import Folder
from workflows.serve import errors
from workflows.serve.errors import ApiError
from workflows.serve.keys import ANYBODY, Allowance, Doorkeeper, Keyring
from workflows.serve.settings import KeySettings

_log = logging.getLogger(__name__)
PREFIX = "till.v1."
ANSWER_S = 20.0  # for the till to answer; one that starts anew needs a few


class Journal:
    """What keys have spent on a day, in a folder that outlives every till.

    <folder>/<writer>.json    {"day": "2026-11-21", "usd": {NAME: USD}}

    Each writer has a file of its own, so that none overwrites another's; a day's spending is the sum over them.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, self._name = folder, f"{uuid.uuid4().hex[:12]}.json"

    def read(self, day: str) -> dict[str, float]:
        """USD of `day` by key, of all writers. Files of days before are deleted; what is no journal is warned of."""
        total: dict[str, float] = {}
        for name in self._folder.list():
            if not name.endswith(".json"):
                continue
            try:
                found = self._folder.read_json(name)
                written, usd = str(found["day"]), {str(key): float(spent) for key, spent in found["usd"].items()}
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                _log.warning("%s/%s cannot be read, its spending is not counted: %r", self._folder, name, error)
                continue
            if written < day:
                self._folder.delete(name)
            elif written == day:
                for key, spent in usd.items():
                    total[key] = total.get(key, 0.0) + spent
        return total

    def write(self, day: str, usd: Mapping[str, float]) -> None:
        """Replace this writer's file. Raises OSError and UserError."""
        self._folder.write_text(self._name, json.dumps({"day": day, "usd": dict(usd)}))


class Register:
    """A doorkeeper and its journal. `restarted`: one was here before, in this till's place."""

    def __init__(
        self,
        folder: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        *,
        restarted: bool = False,
    ) -> None:
        """Raises UserError and OSError for a folder that cannot be read: what was spent is then not known."""
        self._keeper, self._journal = Doorkeeper(clock, wall), Journal(Folder(folder))
        if restarted:
            self._keeper.forget_bursts()
        day, _ = self._keeper.spent
        self._keeper.recall(day, self._journal.read(day))
        self._unwritten, self._writing = False, asyncio.Lock()

    async def admit(self, allowance: Allowance) -> ApiError | None:
        """Count a request; a refusal is returned, for what is raised in an actor arrives as something else."""
        try:
            self._keeper.admit(allowance)
        except ApiError as refusal:
            return refusal
        return None

    async def charge(self, name: str, usd: float) -> None:
        """Count what a search has cost, and write it down."""
        self._keeper.charge(name, usd)
        self._unwritten = True
        async with self._writing:  # those that come meanwhile are written by the next one together
            if self._unwritten:
                self._unwritten = False
                await self._write()

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(self._journal.write, *self._keeper.spent)
        except (OSError, UserError) as error:
            self._unwritten = True
            _log.error("what keys have spent could not be written down and is forgotten with this till: %s", error)


def journal_folder(run: Folder) -> str:
    """Where the till of a run's service writes."""
    return (run / "serve" / "spent").address


class Till:
    """The door of every ingress replica. Can be pickled; finds or starts its register where it is first asked.

    `folder`: address of the journal.
    """

    def __init__(self, keys: Sequence[KeySettings], folder: str, answer_s: float = ANSWER_S) -> None:
        self._ring, self._folder, self._answer_s = Keyring(keys), folder, answer_s
        self._register: Any = None
        self._charging: set[asyncio.Task[None]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_register": None, "_charging": set()}

    async def admit(self, authorization: str | None) -> str:
        """The name of the key whose request it is, counted. Raises `ApiError`: 401 for no key of ours, 429 for one that
        is used up, 503 where that cannot be told."""
        allowance = self._ring.of(authorization)
        if allowance is None:
            return ANYBODY
        refusal = await self._asked("admit", allowance)
        if refusal is not None:
            raise refusal
        return allowance.name

    def charge(self, name: str, usd: float) -> None:
        """What a search of theirs has cost, told in the background: it also counts when the request is broken off."""
        if name == ANYBODY or usd <= 0:
            return
        task = asyncio.create_task(self._charge(name, usd))
        self._charging.add(task)
        task.add_done_callback(self._charging.discard)

    async def settled(self) -> None:
        """Wait until all that was charged here is counted."""
        await asyncio.gather(*self._charging)

    async def _charge(self, name: str, usd: float) -> None:
        try:
            await self._asked("charge", name, usd)
        except ApiError:
            _log.error("%g USD of key %s could not be charged: the till does not answer", usd, name)

    async def _asked(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError

        try:
            if self._register is None:
                self._register = _register_of(self._folder)
            asked = getattr(self._register, method)
            here = isinstance(self._register, Register)
            return await asyncio.wait_for((asked if here else asked.remote)(*arguments), self._answer_s)
        except (RayError, TimeoutError, OSError, UserError) as error:
            self._register = None  # found or started anew by the next one
            _log.error("the till of %s does not answer: %r", self._folder, error)
            raise errors.unavailable("Keys cannot be checked at the moment: ask again.", 2.0) from None


class _RegisterActor(Register):
    """A register in a process of its own."""

    def __init__(self, folder: str) -> None:
        import ray

        super().__init__(folder, restarted=bool(ray.get_runtime_context().was_current_actor_reconstructed))
        collect_rarely()

    async def pid(self) -> int:
        """The process that it runs in."""
        return os.getpid()


def register_name(folder: str) -> str:
    """The actor's name: one per folder, so that services with different journals do not share budgets."""
    return PREFIX + hashlib.sha256(Folder(folder).address.encode()).hexdigest()[:12]


def end_register(folder: str) -> None:
    """End the register of a service that is gone, where it has one; what was spent stays in the journal."""
    import ray

    with suppress(ValueError):  # there is none: nobody has come with a key
        ray.kill(ray.get_actor(register_name(folder), namespace=NAMESPACE))


def _register_of(folder: str) -> Any:
    """The cluster's register where Ray runs, detached as it outlives each ingress; else one of this process's own."""
    import ray

    if not ray.is_initialized():
        return Register(folder)
    actor = ray.remote(_RegisterActor).options(
        name=register_name(folder),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=2,  # a charge that is counted twice is better than one that is lost
        max_concurrency=1000,
    )
    return actor.remote(folder)
