"""Asks the search workers, now and then, what keeps them busy. What is not known for a while is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.search.load import LoadSample
from workflows.grpo.ports import Tools

EVERY_S = 1.0
ANSWER_S = 5.0
SILENT = 10  # answers that did not come, in a row, after which nothing is known


async def follow(tools: Tools, seen: Callable[[LoadSample], None]) -> None:
    """For ever. `seen` is told each answer, and once an empty one when there has been none for long."""
    silent = 0
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                sample = await tools.load()
        except Exception:  # nothing but scheduling and metrics wants to know; what is broken shows in the calls
            silent += 1
            if silent == SILENT:
                seen(LoadSample())
        else:
            silent = 0
            seen(sample)
        await asyncio.sleep(EVERY_S)
