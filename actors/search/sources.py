"""Where answers come from: a recording, the shared cache, or providers; and what is made of their hits.

    text    cassette -> cache -> search -> pages, each: cache -> reader -> cache -> summariser -> evidence
    image   cassette -> cache -> the picture or its crop -> search -> thumbnails -> evidence
    boxes   cassette -> cache -> grounder
    crop    the picture's bytes -> the store; nobody is asked

Always true: what is remembered is independent of who asks and when; callers of one key pay once, and who pays has it
in the tally that was given; in `replay` nobody outside is asked and no picture is looked up elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from actors.agent.seams import Clock, ImageRefused, ImageStore
from actors.agent.trajectory import ImageRef
from actors.search import pictures
from actors.search.cache import SingleFlightCache
from actors.search.crop import Box
from actors.search.endpoints import Asker, Endpoint, Sleep, Tally
from actors.search.evidence import content_sha256, evidence_of, stored_thumbnails
from actors.search.pages.pipeline import PagePipeline
from actors.search.seams import (
    ErrorKind,
    Grounder,
    ImageQuery,
    ImageSearch,
    Page,
    PageReader,
    ProviderError,
    ScoredBox,
    Summariser,
    TextHit,
    TextQuery,
    TextSearch,
)
from actors.search.settings import SearchSettings
from actors.search.store.cassette import Cassette, CassetteCounts, open_cassette
from actors.search.store.records import Call, Codec, Found, canonical
from actors.search.store.settings import Mode
from actors.search.store.shared_cache import AnswerDoor, SharedCache
from actors.search.thumbnails import Thumbnails

log = logging.getLogger(__name__)
T = TypeVar("T")
Boxes = tuple[ScoredBox, ...]
MARGIN_S = 3.0  # before a caller's deadline, for evidence to be made of the pages that are done
PASSING = (ErrorKind.TRANSIENT, ErrorKind.RATE, ErrorKind.OPEN, None)  # failures that a later try may not meet


@dataclass(frozen=True)
class Endpoints:
    """Everything outside, made. Those of one kind are asked in order until one answers."""

    text: Sequence[Endpoint[TextSearch]] = ()
    image: Sequence[Endpoint[ImageSearch]] = ()
    grounder: Endpoint[Grounder] | None = None
    readers: Sequence[Endpoint[PageReader]] = ()
    summarisers: Sequence[Endpoint[Summariser]] = ()

    def __iter__(self) -> Iterator[Endpoint[Any]]:
        yield from (*self.text, *self.image, *self.readers, *self.summarisers)
        if self.grounder is not None:
            yield self.grounder


class Sources:
    """Answers for one gateway, on its event loop. `door`: the cache that all workers share, None without one."""

    def __init__(
        self,
        settings: SearchSettings,
        images: ImageStore,
        endpoints: Endpoints,
        asker: Asker,
        door: AnswerDoor | None,
        clock: Clock,
        wall: Clock,
        sleep: Sleep,
    ) -> None:
        self._settings, self._images, self._endpoints, self._asker = settings, images, endpoints, asker
        self._clock, self._wall = clock, wall
        codec = Codec(images)
        self._cassette: Cassette = open_cassette(settings.cassette, codec, wall=wall)

        def cache() -> SharedCache[Any]:
            return SharedCache(settings.cache, codec, door, clock=clock, wall=wall, sleep=sleep)

        self._found: SharedCache[Found] = cache()
        self._boxes: SharedCache[Boxes] = cache()
        self._pages: SharedCache[Page] = cache()
        self._summaries: SharedCache[str] = cache()
        self._digests: SingleFlightCache[str] = SingleFlightCache(settings.cache.entries)
        self._crops: SingleFlightCache[ImageRef | None] = SingleFlightCache(settings.cache.entries)
        self._thumbnails = Thumbnails()
        self._version = _version(settings)
        self._flushing: asyncio.Task[None] | None = None

    @property
    def recordings(self) -> CassetteCounts:
        """Hits and misses of the cassette."""
        return self._cassette.counts

    @property
    def following(self) -> int:
        """Calls that wait for what a sibling has asked."""
        return sum(cache.following for cache in (self._found, self._boxes, self._digests, self._crops))

    async def close(self) -> None:
        """Cancel what is under way, and write what was recorded."""
        for cache in (self._found, self._boxes, self._pages, self._summaries, self._digests, self._crops):
            await cache.close()
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await asyncio.to_thread(self._cassette.flush)
        await self._thumbnails.close()

    # --- text ---------------------------------------------------------------------------------------------

    async def text(self, query: str, question: str, tally: Tally, until: float) -> tuple[Found, bool]:
        """Evidence for `query`, and whether it cost this caller nothing. Raises ProviderError.

        Pages are summarised for `question`, so it is part of what is asked only where pages are read; those that are
        not done shortly before `until`, a time of the clock, are done without.
        """
        query, question = " ".join(query.split()), " ".join(question.split())
        k, reads = self._settings.top_k, bool(self._endpoints.readers)
        arguments = {"query": query.casefold(), "k": k} | ({"question": question.casefold()} if reads else {})

        async def compute() -> Found:
            hits, name = await self._asker.first_answer(
                self._endpoints.text, lambda provider: provider.search(TextQuery(query, self._wanted(k))), tally
            )
            if not reads:
                return Found(evidence_of(hits, name, self._wall(), self._settings), name)
            return await self._read_through(hits, name, question or query, tally, until)

        return await self._answered("text_search", arguments, self._endpoints.text, self._found, compute, tally)

    def _wanted(self, k: int) -> int:
        """Hits to ask for: with pages, some in place of those that will fail."""
        if not self._endpoints.readers:
            return k
        return (self._settings.pages.pages or k) + self._settings.pages.spare

    async def _read_through(
        self, hits: Sequence[TextHit], name: str, question: str, tally: Tally, until: float
    ) -> Found:
        """Evidence from the pages behind the hits; of those that failed, what the search engine said of them."""

        async def read(url: str) -> Page:
            page, _ = await self._pages.get(self._key("read", {"url": url}, readers), lambda: ask_readers(url))
            return page

        async def ask_readers(url: str) -> Page:
            page, _ = await self._asker.first_answer(readers, lambda reader: reader.read(url), tally)
            return page

        async def summarise(page: Page, question: str) -> str:
            arguments = {"page": content_sha256(page.text), "question": question.casefold()}
            key = self._key("summarise", arguments, summarisers)
            summary, _ = await self._summaries.get(key, lambda: ask_summarisers(page, question))
            return summary

        async def ask_summarisers(page: Page, question: str) -> str:
            most = self._settings.max_text_chars
            summary, _ = await self._asker.first_answer(
                summarisers, lambda summariser: summariser.summarise(page, question, most), tally
            )
            return summary

        readers, summarisers = self._endpoints.readers, self._endpoints.summarisers
        pipeline = PagePipeline(read, summarise, self._settings.pages, self._settings.top_k)
        done = await pipeline.run(hits, question, until - self._clock() - MARGIN_S)
        if (refusal := done.refusal) is not None and refusal.kind is not None:
            raise ProviderError(refusal.kind, refusal.message)  # a person has to see to it; snippets would hide that
        read_by = f"{name}+{readers[0].name}"
        evidence = evidence_of(done.hits, name, self._wall(), self._settings)
        by_url = {hit.url: summarised for hit, summarised in zip(done.hits, done.summarised, strict=True)}
        read_ones = tuple(replace(it, provider=read_by) if by_url.get(it.url) else it for it in evidence)
        return Found(read_ones, name, passing=any(failure.kind in PASSING for failure in done.failures))

    # --- pictures -----------------------------------------------------------------------------------------

    async def image(self, ref: ImageRef, box: Box | None, tally: Tally) -> tuple[Found, bool]:
        """Evidence for the picture, or its part in `box` (pixels). Raises ProviderError, ImageMissing, ImageRefused."""
        k = self._settings.top_k
        digest = ref.sha256 if box is None else await self._crop_digest(ref, box)

        async def compute() -> Found:
            picture = await asyncio.to_thread(self._picture, ref, box)
            hits, name = await self._asker.first_answer(
                self._endpoints.image, lambda provider: provider.search(ImageQuery(picture, k)), tally
            )
            hits = await self._thumbnails.fetched(hits[:k])
            thumbnails = await asyncio.to_thread(stored_thumbnails, hits, self._images)
            return Found(evidence_of(hits, name, self._wall(), self._settings, thumbnails), name)

        arguments = {"image": digest, "k": k}
        return await self._answered("image_search", arguments, self._endpoints.image, self._found, compute, tally)

    async def boxes(self, ref: ImageRef, expression: str, tally: Tally) -> tuple[Boxes, bool]:
        """Where `expression` is in the picture. There must be a grounder. Raises ProviderError."""
        assert self._endpoints.grounder is not None
        grounders = [self._endpoints.grounder]

        async def compute() -> Boxes:
            picture = await asyncio.to_thread(self._picture, ref, None)
            boxes, _ = await self._asker.first_answer(
                grounders, lambda provider: provider.ground(picture, expression), tally
            )
            return tuple(boxes)

        arguments = {"image": ref.sha256, "expression": expression.casefold()}
        return await self._answered("ground", arguments, grounders, self._boxes, compute, tally)

    async def crop(self, ref: ImageRef, box: Box) -> ImageRef | None:
        """The part of the picture in `box` (pixels) as a picture of its own, the one that `image` sends.

        None when the store refuses it, for a shape or a size that the picture around it does not have. Raises
        ImageMissing and ImageRefused for the picture itself.
        """

        def cut() -> ImageRef | None:
            picture = self._picture(ref, box)
            try:
                return self._images.put(picture)
            except ImageRefused:
                return None  # no fault of the data: the policy chose the box

        crop, _ = await self._crops.get(f"{ref.sha256}:{box}", lambda: asyncio.to_thread(cut))
        return crop

    async def _crop_digest(self, ref: ImageRef, box: Box) -> str:
        """The content hash of a crop. Only the hash is kept: a crop is cut again when it is really needed."""

        async def compute() -> str:
            return pictures.sha256(await asyncio.to_thread(self._picture, ref, box))

        digest, _ = await self._digests.get(f"{ref.sha256}:{box}", compute)
        return digest

    def _picture(self, ref: ImageRef, box: Box | None) -> bytes:
        """Encoded bytes of the image or of a crop. Raises ImageMissing, ImageRefused."""
        data = self._images.get(ref)
        try:
            if box is not None:
                return pictures.cut(data, box)
            pictures.check(data)
            return data
        except pictures.UnreadablePicture as error:
            raise ImageRefused(f"image {ref.sha256[:12]} cannot be searched: {error}") from error

    # --- recorded, remembered, asked ----------------------------------------------------------------------

    async def _answered(
        self,
        tool: str,
        arguments: dict[str, Any],
        endpoints: Sequence[Endpoint[Any]],
        cache: SharedCache[T],
        compute: Callable[[], Awaitable[T]],
        tally: Tally,
    ) -> tuple[T, bool]:
        call = self._call(tool, arguments, endpoints)
        shared = False

        async def ask() -> T:
            nonlocal shared
            value, shared = await cache.get(call.key, compute)
            return value

        if self._cassette.mode is Mode.LIVE:
            return await ask(), shared
        if self._cassette.mode is Mode.RECORD and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_now_and_then())
        value, replayed = await self._cassette.answer(call, ask, cost_usd=lambda: tally.cost_usd)
        return value, shared or replayed

    def _call(self, tool: str, arguments: dict[str, Any], endpoints: Sequence[Endpoint[Any]]) -> Call:
        names = tuple(endpoint.name for endpoint in endpoints)
        locale = " ".join(dict.fromkeys(endpoint.locale for endpoint in endpoints if endpoint.locale))
        return Call(tool, arguments, names, locale, self._version)

    def _key(self, tool: str, arguments: dict[str, Any], endpoints: Sequence[Endpoint[Any]]) -> str:
        return self._call(tool, arguments, endpoints).key

    async def _flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._settings.cassette.flush_s)
            try:
                await asyncio.to_thread(self._cassette.flush)
            except OSError as error:
                log.warning("recordings could not be written, and will be tried again: %s", error)


def _version(settings: SearchSettings) -> str:
    """A digest of what shapes answers beside the call itself: bounds, and how pages are read."""
    readers = [one.name or one.path for one in (*settings.readers, *settings.summarisers)]
    pages = vars(settings.pages) if readers else {}
    shapes = {"title": settings.max_title_chars, "text": settings.max_text_chars, "readers": readers, "pages": pages}
    return hashlib.sha256(canonical(shapes).encode()).hexdigest()[:12]
