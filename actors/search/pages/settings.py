"""Configuration of the page pipeline. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PageSettings:
    """How the pages behind search results are read."""

    pages: int | None = field(default=None, metadata={"ge": 1})
    # pages wanted of one search; None: as many as the search returns hits (top_k)
    spare: int = field(default=5, metadata={"ge": 0})
    # further results that may be tried in place of failed ones
    at_once: int = field(default=5, metadata={"ge": 1})
    # pages of one search under way at a time
    max_page_chars: int = field(default=30_000, metadata={"ge": 1})
    # of one page, from its beginning, are summarised; MMSearch-R1 (papers.md 2.1)
    deadline_s: float = field(default=40.0, metadata={"gt": 0})
    # seconds for all pages of one search; what is done by then is returned
    keep_snippet: bool = True
    # a result whose page could not be had keeps the search engine's own text where pages are missing
