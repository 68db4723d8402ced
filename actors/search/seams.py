"""Protocols and records between the gateway and its providers.

An adapter knows its endpoint's shapes and error meanings and nothing else: it returns hits, best first, or
raises `ProviderError`. An empty list is a genuine "nothing found". Deadlines, retries, concurrency, caching,
prices and the ledger are the gateway's, once, for all adapters. What adapters return is untrusted text; the
gateway neutralises it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class ErrorKind(StrEnum):
    """What a provider's refusal means for the next attempt."""

    BAD_KEY = "bad_key"  # fatal until somebody mends the key
    NO_CREDIT = "no_credit"  # fatal until somebody pays
    RATE = "rate"  # wait, honour retry_after
    BAD_REQUEST = "bad_request"  # this very request will never be accepted
    TRANSIENT = "transient"  # 5xx, cut connection, timeout: try again
    SCHEMA = "schema"  # the answer is not what the adapter knows how to read
    BUDGET = "budget"  # not asked: what we allowed ourselves to spend is spent
    NOT_RECORDED = "not_recorded"  # not asked: a replay has no recording of it
    OPEN = "open"  # not asked: it failed too often a moment ago

    @property
    def retryable(self) -> bool:
        return self in (ErrorKind.RATE, ErrorKind.TRANSIENT)


class ProviderError(Exception):
    """A provider did not answer. `retry_after`: seconds that it asked to wait, None when it said nothing. `sent`: False
    where the adapter asked nobody, for want of a key or for the address: no request is counted then."""

    def __init__(self, kind: ErrorKind, message: str, retry_after: float | None = None, *, sent: bool = True) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        self.sent = sent

    def __reduce__(self):
        return (ProviderError, (self.kind, self.message, self.retry_after), {"sent": self.sent})

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class TextQuery:
    """`text` as the policy wrote it; `k`: hits wanted at most."""

    text: str
    k: int


@dataclass(frozen=True)
class TextHit:
    """One retrieved page. `score` is the provider's own, higher is better; 0 where it gives none."""

    title: str
    url: str
    text: str
    score: float = 0.0


@dataclass(frozen=True)
class ImageQuery:
    """`image`: encoded bytes (PNG, JPEG, ...) of the whole picture or of a crop; `k`: hits wanted at most."""

    image: bytes
    k: int


@dataclass(frozen=True)
class ImageHit:
    """One page with a similar picture. `thumbnail`: encoded bytes, None where there is none, or none but an address."""

    title: str
    url: str
    text: str
    score: float = 0.0
    thumbnail: bytes | None = None
    thumbnail_url: str = ""


@dataclass(frozen=True)
class ScoredBox:
    """A detection: x0, y0, x1, y1 in pixels of the picture that was given, score in 0..1."""

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Page:
    """Main text of a web page. `fetched_at`: unix seconds."""

    url: str
    title: str
    text: str
    fetched_at: float = 0.0


class TextSearch(Protocol):
    async def search(self, query: TextQuery) -> list[TextHit]:
        """At most `query.k` hits, best first. Raises ProviderError."""
        ...


class ImageSearch(Protocol):
    async def search(self, image: ImageQuery) -> list[ImageHit]:
        """At most `image.k` hits, best first. Raises ProviderError."""
        ...


class Grounder(Protocol):
    async def ground(self, image: bytes, expression: str) -> list[ScoredBox]:
        """Where `expression` is in the picture; any order, possibly nowhere. Raises ProviderError."""
        ...


class PageReader(Protocol):
    async def read(self, url: str) -> Page:
        """Raises ProviderError."""
        ...


class Summariser(Protocol):
    async def summarise(self, page: Page, question: str, max_chars: int) -> str:
        """What of `page` bears on `question`, in at most `max_chars` characters. Raises ProviderError."""
        ...
