"""The agent's Toolbox over the search deployment.

Always true: never raises for what the world did; a search replica that died, hangs or is full is an infrastructure
failure of this one call, which the model reads as a search that failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from actors.agent.trajectory import Outcome, ToolRequest, ToolResult
from workflows.serve.memory_images import MemoryImages
from workflows.serve.orders import Errand, Found

UNAVAILABLE = "searching is not available at the moment"


class ServeToolbox:
    """`search`: the handle of the search deployment. `caller`: whose key pays. `held`: pictures of the request, which
    results are added to."""

    def __init__(self, search: Any, caller: str, images: MemoryImages, held: Counter[str]) -> None:
        self._search, self._caller, self._images, self._held = search, caller, images, held

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """As `Toolbox.call`; `deadline` is a time of this process's time.monotonic."""
        began = time.monotonic()
        picture = None if request.image is None else (request.image, self._images.get(request.image))
        errand = Errand(request, self._caller, max(0.0, deadline - began), picture)
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
        for ref, data in found.pictures:
            self._images.keep(ref, data)
            self._images.hold(self._held, ref)
        return found.result


def _let_go(answer: Any) -> None:
    with suppress(Exception):  # it raises again what kept the call from being begun
        answer.cancel()


def _failed(message: str, began: float) -> ToolResult:
    return ToolResult(Outcome.INFRA_ERROR, message=message, latency_s=time.monotonic() - began)
