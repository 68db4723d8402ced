"""Every call of a tool passes here: validate, resolve the region, cache, providers, evidence, ledger.

Always true:
- what the world did never raises, the outcome says it, storage that fails included. A picture that is missing or
  does not decode is a fault of the data: `ImageMissing` and `ImageRefused` leave as they are, and the episode counts
  them so;
- no provider is asked for a request that the policy got wrong;
- every wait ends: an attempt after `attempt_deadline`, a call with its retries after `call_deadline`, and a
  caller at its own deadline;
- text leaves neutralised and bounded, and every call that ends is in the ledger.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace

from actors.agent.seams import Clock, ImageStore
from actors.agent.trajectory import ImageRef, Outcome, Tool, ToolRequest, ToolResult
from actors.agent.untrusted import one_line
from actors.search.crop import Box, chosen, in_pixels, padded, shorter_side
from actors.search.endpoints import Asker, Sleep, Tally
from actors.search.evidence import bounded
from actors.search.ledger import Ledger, LedgerRow, Totals
from actors.search.load import LoadSample
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import SearchSettings
from actors.search.sources import Endpoints, Sources
from actors.search.store.records import Found
from actors.search.store.settings import Mode
from actors.search.store.shared_cache import AnswerDoor


@dataclass(frozen=True)
class _Region:
    """The part of an image to search. `box`: pixels, None for the whole image; `note` records a fallback."""

    box: Box | None = None
    note: str = ""
    cached: bool = True


class Gateway:
    """The agent's Toolbox over real providers, for one event loop. `door`: the cache that all workers share."""

    def __init__(
        self,
        settings: SearchSettings,
        images: ImageStore,
        endpoints: Endpoints,
        door: AnswerDoor | None = None,
        *,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._settings, self._endpoints = settings, endpoints
        self._clock, self._wall = clock, wall
        self._asker = Asker(settings, clock, sleep, rng or random.Random())
        self._sources = Sources(settings, images, endpoints, self._asker, door, clock, wall, sleep)
        self.ledger = Ledger(settings.ledger_rows)

    # --- one call -----------------------------------------------------------------------------------------

    async def call(self, request: ToolRequest, *, deadline: float) -> ToolResult:
        """Carry out `request` before `deadline`, a time of this gateway's clock.

        Raises ImageMissing and ImageRefused.
        """
        started, tally, grounding = self._clock(), Tally(), Tally()
        problem = self._policy_problem(request)
        if problem:
            result = ToolResult(Outcome.POLICY_ERROR, message=problem)
        else:
            try:
                async with asyncio.timeout(max(0.0, deadline - started)):
                    result = await self._searched(request, tally, grounding, deadline)
            except ProviderError as error:
                message = _told(request.tool, error.kind, error.message)
                result = ToolResult(_outcome(error, request.tool), message=message)
            except TimeoutError:
                result = ToolResult(Outcome.INFRA_ERROR, message="the search did not end before its deadline")
            except OSError as error:  # of where pictures lie: providers tell theirs as ProviderError
                result = ToolResult(Outcome.INFRA_ERROR, message=_told(request.tool, "storage", str(error)))
        cost = tally.cost_usd + grounding.cost_usd  # of a search that failed, too
        result = replace(result, latency_s=self._clock() - started, cost_usd=cost)
        self._enter(request.tool.value, result, tally)
        return result

    @property
    def totals(self) -> Totals:
        """Sums of the ledger, and of what a cassette was asked for."""
        tape = self._sources.recordings
        return replace(self.ledger.totals, replayed=tape.hits, unrecorded=tape.misses)

    def load(self) -> LoadSample:
        """What keeps this gateway busy now; see actors/search/load.py."""
        sample = self._asker.load()
        return replace(sample, resting=sample.resting + self._sources.following)

    async def open(self) -> None:
        """Returns once the brokers of all quotas answer, and indexes and models are loaded; where all is replayed,
        none is needed.

        Raises BrokerUnreachable, and UserError for an index or a model that cannot be loaded.
        """
        if self._settings.cassette.mode is Mode.REPLAY:
            return
        desks = [endpoint.desk.open() for endpoint in self._endpoints if endpoint.desk is not None]
        prepare = [getattr(endpoint.provider, "prepare", None) for endpoint in self._endpoints]
        await asyncio.gather(*desks, *(one() for one in prepare if one is not None))

    async def close(self) -> None:
        """Cancel the requests that are under way, tell the quotas what was used, and close connections."""
        await self._sources.close()
        for endpoint in self._endpoints:
            if endpoint.desk is not None:
                await endpoint.desk.close()
            close = getattr(endpoint.provider, "close", None)  # adapters that hold connections have one
            if close is not None:
                await close()

    def _policy_problem(self, request: ToolRequest) -> str:
        """Why the policy's request cannot be carried out, in words for the policy; "" when it can."""
        settings = self._settings
        if len(request.query) > settings.max_query_chars:
            return f"the query is longer than {settings.max_query_chars} characters"
        if not (self._endpoints.text if request.tool is Tool.TEXT_SEARCH else self._endpoints.image):
            return f"{_spoken(request.tool)} is not available"
        if request.tool is Tool.TEXT_SEARCH:
            return "" if request.query.strip() else "the text query is empty"
        if request.image is None:
            return f"there is no image {request.image_number} to search"
        if request.box is not None:
            box = in_pixels(request.box, request.image.width, request.image.height)
            if box is None:
                return f"box {request.box} is empty or outside 0..1000"
            if shorter_side(box) < settings.region.min_box:
                return f"box {request.box} is too small to be searched"
        return ""

    async def _searched(self, request: ToolRequest, tally: Tally, grounding: Tally, deadline: float) -> ToolResult:
        if request.tool is Tool.TEXT_SEARCH:
            found, shared = await self._sources.text(request.query, request.question, tally, deadline)
            return _result(found, _Region(), shared)
        image = request.image
        assert image is not None  # else a policy error
        region = await self._region(request, image, grounding)
        found, shared = await self._sources.image(image, region.box, tally)
        result = _result(found, region, shared, request.image_number)
        if request.return_crop and region.box is not None and region.box != (0, 0, image.width, image.height):
            return replace(result, crop=await self._sources.crop(image, region.box))
        return result

    def _enter(self, tool: str, result: ToolResult, tally: Tally) -> None:
        self.ledger.enter(
            LedgerRow(
                at=self._wall(),
                tool=tool,
                provider=result.provider,
                outcome=result.outcome,
                latency_s=result.latency_s,
                cost_usd=tally.cost_usd,
                cached=result.cached,
                requests=tally.requests,
                tokens=tally.tokens,
                waited_s=tally.waited_s,
            )
        )

    # --- the tools ----------------------------------------------------------------------------------------

    async def _region(self, request: ToolRequest, ref: ImageRef, tally: Tally) -> _Region:
        """What of the image to search; `crop` has the rule when an expression finds many things or none."""
        rules, (width, height) = self._settings.region, (ref.width, ref.height)
        if request.box is not None:
            box = in_pixels(request.box, width, height)
            assert box is not None  # else a policy error
            return _Region(padded(box, width, height, rules))
        expression = " ".join(request.query.split())
        if not expression:
            return _Region()
        if self._endpoints.grounder is None:
            return _Region(note="nothing can look for parts of an image: the whole image was searched")
        started = self._clock()
        try:
            boxes, cached = await self._sources.boxes(ref, expression, tally)
        except ProviderError as error:
            self._enter_grounding(_outcome(error, request.tool), started, tally, cached=False)
            raise
        self._enter_grounding(Outcome.OK if boxes else Outcome.EMPTY, started, tally, cached=cached)
        box = chosen(boxes, width, height, rules)
        if box is None:
            note = f"no {expression!r} was found in the image: the whole image was searched"
            return _Region(None, note, cached)
        return _Region(padded(box, width, height, rules), "", cached)

    def _enter_grounding(self, outcome: Outcome, started: float, tally: Tally, *, cached: bool) -> None:
        assert self._endpoints.grounder is not None
        result = ToolResult(
            outcome, provider=self._endpoints.grounder.name, latency_s=self._clock() - started, cached=cached
        )
        self._enter("ground", result, tally)


def _result(found: Found, region: _Region, shared: bool, image_number: int = 0) -> ToolResult:
    return ToolResult(
        outcome=Outcome.OK if found.evidence else Outcome.EMPTY,
        evidence=tuple(replace(item, crop_box=region.box, image_number=image_number) for item in found.evidence),
        message=region.note or ("" if found.evidence else "nothing was found"),
        provider=found.provider,
        cached=shared and region.cached,
        crop_box=region.box,
    )


def _outcome(error: ProviderError, tool: Tool) -> Outcome:
    """Whose failure it is. No retry mends a key or a budget; only a text query is of the policy's making."""
    if error.kind in (ErrorKind.NO_CREDIT, ErrorKind.BAD_KEY, ErrorKind.BUDGET, ErrorKind.NOT_RECORDED):
        return Outcome.REFUSED
    if error.kind is ErrorKind.BAD_REQUEST and tool is Tool.TEXT_SEARCH:
        return Outcome.POLICY_ERROR
    return Outcome.INFRA_ERROR


def _told(tool: Tool, kind: str, message: str) -> str:
    """What the record and the policy read: one line, neutralised like all that comes from outside."""
    return bounded(f"{_spoken(tool)} failed ({kind}): {one_line(message)}", 300)


def _spoken(tool: Tool) -> str:
    return tool.value.replace("_", " ")
