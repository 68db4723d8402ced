"""The search of the service: a gateway per replica, beside training's on the same quotas.

Always true: pictures come with a call and go with its result; a replica keeps none of them longer than the call. What
a provider is paid is charged to the key of the call that asked it, at that moment, whether its client still waits or
not.
"""

from __future__ import annotations

import time
from dataclasses import replace

from actors.agent.trajectory import ToolResult
from actors.search.build import build_gateway
from actors.search.metering import billed_to
from actors.search.settings import SearchSettings
from workflows.serve.memory_images import MemoryImages
from workflows.serve.orders import Errand, Found, Picture
from workflows.serve.scaling import as_stats
from workflows.serve.till import Till


class Search:
    """A gateway. Becomes a deployment in app.py."""

    async def __init__(self, settings: SearchSettings, till: Till) -> None:
        """Serve awaits it on the loop that calls run on, which the gateway's connections belong to."""
        self._till, self._images = till, MemoryImages()
        self._gateway = build_gateway(settings, self._images)
        await self._gateway.open()

    async def call(self, errand: Errand) -> Found:
        """One search. Raises only what is a bug."""
        with self._images.holding(()) as held, billed_to(lambda usd: self._till.charge(errand.caller, usd)):
            if errand.picture is not None:
                self._images.keep(*errand.picture)
                self._images.hold(held, errand.picture[0])
            result = await self._gateway.call(errand.request, deadline=time.monotonic() + errand.seconds)
            return Found(*self._with_pictures(result))

    def _with_pictures(self, result: ToolResult) -> tuple[ToolResult, tuple[Picture, ...]]:
        """The result, and the bytes of its pictures. A cache remembers answers for longer than memory holds pictures:
        what is gone is left out of the result, which says as much without it."""
        held = {ref: self._images.get(ref) for ref in result.images if self._images.has(ref)}
        if len(held) == len(set(result.images)):
            return result, tuple(held.items())
        crop = result.crop if result.crop in held else None
        evidence = tuple(
            item if item.thumbnail is None or item.thumbnail in held else replace(item, thumbnail=None)
            for item in result.evidence
        )
        return replace(result, crop=crop, evidence=evidence), tuple(held.items())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What keeps this replica busy now, for `QuotaAwareScaling`."""
        return as_stats(self._gateway.load())

    async def __del__(self) -> None:
        await self._gateway.close()
        await self._till.settled()
