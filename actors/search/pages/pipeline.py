"""The text pipeline: results of a search -> their pages -> a summary of each, every page on its own.

    hits by rank:  1     2     3     4     5     6 ...
                   |     |     |                          the first k start at once
                  read  read  read                        a page is summarised as soon as it is read
                   |     x     |  ->   4 starts           the moment one fails the next result starts
               summarise     summarise

Always true:
- no more pages are started than are still wanted, and no address is read twice in one run;
- results keep the order of the search; a result is the summary of its page, or, said so, the search engine's own
  text, never anything else;
- `run` ends at its deadline with what is done, and leaves no task behind, also when it is cancelled;
- a page that fails fails alone, and is recorded.

The pipeline does no I/O: it is given `read` and `summarise`, and whoever gives them sees to retries, quotas, caches
and the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from actors.search.pages.settings import PageSettings
from actors.search.seams import ErrorKind, Page, ProviderError, TextHit

log = logging.getLogger(__name__)

Read = Callable[[str], Awaitable[Page]]
Summarise = Callable[[Page, str], Awaitable[str]]
Sleep = Callable[[float], Awaitable[None]]

CLEANUP_S = 2.0  # for cancelled tasks to end; only one that ignores its cancellation needs longer
REFUSALS = (ErrorKind.BAD_KEY, ErrorKind.NO_CREDIT, ErrorKind.BUDGET)  # no retry mends these
_STOPS = (*REFUSALS, ErrorKind.OPEN)  # what fails one page so will fail the next


class Stage(StrEnum):
    """How far a page came."""

    READ = "read"
    SUMMARISE = "summarise"


@dataclass(frozen=True)
class PageFailure:
    """A result without a summary. `kind`: None when it was cut off at the deadline."""

    url: str
    stage: Stage
    kind: ErrorKind | None
    message: str


@dataclass(frozen=True)
class PagesRead:
    """`hits` by the search's rank; `summarised` runs parallel to them, False where the text is the search's own."""

    hits: tuple[TextHit, ...]
    summarised: tuple[bool, ...]
    failures: tuple[PageFailure, ...] = ()

    @property
    def snippets(self) -> int:
        """Hits that carry only the search engine's own text."""
        return len(self.summarised) - sum(self.summarised)

    @property
    def refusal(self) -> PageFailure | None:
        """The failure that no retry mends (a key, a budget), None when there was none."""
        return next((failure for failure in self.failures if failure.kind in REFUSALS), None)


class PagePipeline:
    """Reads and summarises pages. Holds no state between runs: any number may be under way in one event loop."""

    def __init__(
        self, read: Read, summarise: Summarise, settings: PageSettings, top_k: int, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        """`top_k`: pages wanted where the settings name no number; `sleep` keeps the deadline's time."""
        self._read, self._summarise, self._settings = read, summarise, settings
        self._wanted = settings.pages or top_k
        self._sleep = sleep

    async def run(self, hits: Sequence[TextHit], question: str, seconds_left: float | None = None) -> PagesRead:
        """Summaries of at most `pages` hits, given by rank, as they bear on `question`.

        It ends after `deadline_s`, or after `seconds_left` where that is sooner, and starts nothing when no time is
        left. Raises nothing that a page, a
        reader or a summariser did; `PagesRead.failures` says it.
        """
        settings = self._settings
        seconds = settings.deadline_s if seconds_left is None else max(0.0, min(settings.deadline_s, seconds_left))
        state = _Run(_distinct(hits), self._wanted)
        timer = asyncio.ensure_future(self._sleep(seconds))
        try:
            while seconds > 0 and not timer.done() and self._start(state, question):
                await asyncio.wait([timer, *state.tasks], return_when=asyncio.FIRST_COMPLETED)
                state.collect()
            state.collect()
            state.cut_off()
        finally:
            await _ended([timer, *state.tasks])
        return state.outcome(keep_snippet=settings.keep_snippet)

    def _start(self, state: _Run, question: str) -> bool:
        """Start what is due; whether anything is under way."""
        most = self._wanted + self._settings.spare
        while (rank := state.due(most, self._settings.at_once)) is not None:
            state.stages[rank] = Stage.READ
            state.tasks[asyncio.create_task(self._page(state, rank, question))] = rank
        return bool(state.tasks)

    async def _page(self, state: _Run, rank: int, question: str) -> TextHit:
        """One hit with its page's summary for a text. Raises ProviderError."""
        hit = state.hits[rank]
        try:
            if not hit.url.strip():
                raise ProviderError(ErrorKind.BAD_REQUEST, "the result has no address")
            page = await self._read(hit.url)
            text = page.text[: self._settings.max_page_chars]
            if not text.strip():
                raise ProviderError(ErrorKind.SCHEMA, "the page has no text")
            state.stages[rank] = Stage.SUMMARISE
            summary = await self._summarise(replace(page, text=text), question)
            if not summary.strip():
                raise ProviderError(ErrorKind.SCHEMA, "the summary is empty")
        except ProviderError:
            raise
        except OSError as error:  # timeouts too
            raise ProviderError(ErrorKind.TRANSIENT, str(error) or type(error).__name__) from error
        except Exception as error:  # readers and summarisers are third-party code
            log.exception("a page failed in a way that neither its reader nor its summariser knows")
            raise ProviderError(ErrorKind.SCHEMA, type(error).__name__) from error
        return TextHit(title=hit.title.strip() or page.title, url=hit.url, text=summary, score=hit.score)


@dataclass
class _Run:
    """What is known of one run's pages, by rank."""

    hits: list[TextHit]  # distinct addresses
    wanted: int
    tasks: dict[asyncio.Task[TextHit], int] = field(default_factory=dict)
    stages: dict[int, Stage] = field(default_factory=dict)  # of what was started
    good: dict[int, TextHit] = field(default_factory=dict)
    failures: dict[int, PageFailure] = field(default_factory=dict)

    def due(self, most: int, at_once: int) -> int | None:
        """The rank to start now, None when there is none."""
        rank, under_way = len(self.stages), len(self.tasks)
        if rank >= min(most, len(self.hits)) or under_way >= at_once or len(self.good) + under_way >= self.wanted:
            return None
        if any(failure.kind in _STOPS for failure in self.failures.values()):
            return None
        return rank

    def collect(self) -> None:
        """Take the results of the tasks that have ended."""
        for task in [task for task in self.tasks if task.done()]:
            rank = self.tasks.pop(task)
            if task.cancelled():  # by its own doing: a reader that gave up
                self._failed(rank, None, "cancelled")
                continue
            error = task.exception()
            if error is None:
                self.good[rank] = task.result()
            elif isinstance(error, ProviderError):
                self._failed(rank, error.kind, error.message)
            else:
                raise error  # KeyboardInterrupt and its like: not the page's

    def cut_off(self) -> None:
        """Record what is still under way as not done in time."""
        for rank in self.tasks.values():
            self._failed(rank, None, "not done in time")

    def _failed(self, rank: int, kind: ErrorKind | None, message: str) -> None:
        self.failures[rank] = PageFailure(self.hits[rank].url, self.stages[rank], kind, message)

    def outcome(self, *, keep_snippet: bool) -> PagesRead:
        chosen = dict(self.good)
        if keep_snippet:
            spoken = [rank for rank, hit in enumerate(self.hits) if rank not in self.good and hit.text.strip()]
            chosen.update((rank, self.hits[rank]) for rank in spoken[: max(0, self.wanted - len(self.good))])
        ranks = sorted(chosen)
        return PagesRead(
            hits=tuple(chosen[rank] for rank in ranks),
            summarised=tuple(rank in self.good for rank in ranks),
            failures=tuple(self.failures[rank] for rank in sorted(self.failures)),
        )


def _distinct(hits: Sequence[TextHit]) -> list[TextHit]:
    """The hits without those whose address, but for its #fragment, came before; those without address all stay."""
    seen: set[str] = set()
    distinct: list[TextHit] = []
    for hit in hits:
        address = hit.url.strip().partition("#")[0]
        if address and address in seen:
            continue
        seen.add(address)
        distinct.append(hit)
    return distinct


async def _ended(tasks: Sequence[asyncio.Future[None] | asyncio.Task[TextHit]]) -> None:
    """Cancel what is not done and wait until it has ended, so that no task outlives its run."""
    for task in tasks:
        task.cancel()
    _, stubborn = await asyncio.wait(tasks, timeout=CLEANUP_S)
    if stubborn:
        log.warning("%d page tasks ignore their cancellation", len(stubborn))
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it
