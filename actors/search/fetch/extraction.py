"""Child processes that find the main text of pages, and that are killed when they take too long.

Always true: a child works on one page at a time; one that ran over its time, was left by its caller in the middle of a
page, or answered nonsense is killed and never asked again; a child has none of the environment's keys. Children start
when they are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
from pathlib import Path

from actors.search.fetch import main_text
from actors.search.fetch.urls import refused
from actors.search.seams import ErrorKind, ProviderError

START_DEADLINE = 60.0  # seconds for a child to load its libraries on a busy machine
_MAX_ANSWER = 64 * 2**20  # bytes
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "TMPDIR")
COMMAND = (sys.executable, "-P", str(Path(main_text.__file__)))  # -P: its folder must not shadow libraries


class Extractors:
    """At most `processes` children; `deadline` seconds for one page. For one event loop."""

    def __init__(self, processes: int, deadline: float, command: tuple[str, ...] = COMMAND) -> None:
        self._deadline, self._command = deadline, command
        self._slots = asyncio.Semaphore(processes)
        self._idle: list[asyncio.subprocess.Process] = []

    async def __call__(self, html: str) -> tuple[str, str]:
        """Title and main text. Raises ProviderError: BAD_REQUEST for a page that takes too long or kills its
        child, TRANSIENT when no child becomes free or none starts."""
        try:
            async with asyncio.timeout(START_DEADLINE):
                await self._slots.acquire()
        except TimeoutError as error:
            raise ProviderError(ErrorKind.TRANSIENT, "too many pages wait for their text") from error
        try:
            return await self._on_a_child(html)
        finally:
            self._slots.release()

    async def _on_a_child(self, html: str) -> tuple[str, str]:
        child = self._living() or await self._start()
        done = False
        try:
            async with asyncio.timeout(self._deadline):
                answer = await _ask(child, html)
            done = True
            return answer
        except TimeoutError as error:
            raise refused(f"the page's text was not found in {self._deadline:g} s") from error
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            raise refused("the page broke its parser") from error
        finally:
            if done:
                self._idle.append(child)
            else:
                await _kill(child)

    def _living(self) -> asyncio.subprocess.Process | None:
        """One that waits for work; those that died meanwhile are forgotten."""
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )
        except OSError as error:
            raise ProviderError(ErrorKind.TRANSIENT, "no process to find texts can be started") from error
        ready = False
        try:
            async with asyncio.timeout(START_DEADLINE):
                await _frame(child)
            ready = True
            return child
        except (TimeoutError, EOFError, OSError, ValueError) as error:
            raise ProviderError(ErrorKind.TRANSIENT, "the process that finds texts does not start") from error
        finally:
            if not ready:
                await _kill(child)

    async def close(self) -> None:
        while self._idle:
            await _kill(self._idle.pop())


async def _ask(child: asyncio.subprocess.Process, html: str) -> tuple[str, str]:
    assert child.stdin is not None
    payload = html.encode("utf-8", errors="replace")
    child.stdin.write(struct.pack(">I", len(payload)) + payload)
    await child.stdin.drain()
    answer = json.loads(await _frame(child))
    return str(answer["title"]), str(answer["text"])


async def _frame(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdout is not None
    (length,) = struct.unpack(">I", await child.stdout.readexactly(4))
    if length > _MAX_ANSWER:
        raise ValueError("an answer of unlikely length")
    return await child.stdout.readexactly(length)


async def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    await child.wait()
