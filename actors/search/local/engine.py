"""What the local engines have in common: opened at the first question, asked in threads, never on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


class LocalEngine(Generic[T]):
    """Constructing does no I/O. At most `threads` questions are worked on at a time; the others wait their turn."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise UserError(f"threads is {threads} and must be at least 1.")
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._opened: T | None = None
        self._opening = threading.Lock()

    def open(self) -> T:
        """What is asked, opened now if it is not yet. Raises UserError, and again at the next call."""
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    async def prepare(self) -> None:
        """Open it, before anybody asks. Raises UserError."""
        await asyncio.to_thread(self.open)

    async def close(self) -> None:
        """Lets go of the threads and of what was opened; a later question opens it again."""
        pool, self._pool, self._opened = self._pool, None, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> T:
        raise NotImplementedError

    async def _in_thread(self, answer: Callable[..., R], *args: Any) -> R:
        """`answer(opened, *args)` in a thread. What only a person can mend leaves as a ProviderError of its own words:
        the next attempt meets the same index."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=type(self).__name__)

        def work() -> R:
            return answer(self.open(), *args)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except UserError as error:
            raise ProviderError(ErrorKind.SCHEMA, error.message) from error
