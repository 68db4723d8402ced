"""The agent's Toolbox over the search deployment.

Always true: never raises for what the world did; a search replica that died, hangs or is full is an infrastructure
failure of this one call, which the model reads as a search that failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from actors.agent.trajectory import Outcome, ToolRequest, ToolResult
from workflows.serve.memory_images import MemoryImages
from workflows.serve.orders import Errand, Found

UNAVAILABLE = "searching is not available at the moment"


class ServeToolbox:
    """`search`: the handle of the search deployment. `held`: pictures of the request, which results are added to.

    `spent` is told the USD of each search at once, so that a client that leaves then has paid for it.
    """

    def __init__(
        self, search: Any, images: MemoryImages, held: Counter[str], spent: Callable[[float], Awaitable[None]]
    ) -> None:
        self._search, self._images, self._held, self._spent = search, images, held, spent

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """As `Toolbox.call`; `deadline` is a time of this process's time.monotonic."""
        began = time.monotonic()
        picture = None if request.image is None else (request.image, self._images.get(request.image))
        errand = Errand(request, max(0.0, deadline - began), picture)
        answer = self._search.call.remote(errand)
        try:
            async with asyncio.timeout(errand.seconds):
                found: Found = await answer
        except TimeoutError:
            _let_go(answer)
            return _failed("the search did not end before its deadline", began)
        except asyncio.CancelledError:
            _let_go(answer)
            raise
        except Exception as error:  # of Ray, Serve and the network there are many; none is the request's fault
            return _failed(f"{UNAVAILABLE} ({type(error).__name__})", began)
        if found.result.cost_usd:
            await self._spent(found.result.cost_usd)
        for ref, data in found.pictures:
            self._images.keep(ref, data)
            self._images.hold(self._held, ref)
        return found.result


def _let_go(answer: Any) -> None:
    with suppress(Exception):  # it raises again what kept the call from being begun
        answer.cancel()


def _failed(message: str, began: float) -> ToolResult:
    return ToolResult(Outcome.INFRA_ERROR, message=message, latency_s=time.monotonic() - began)
