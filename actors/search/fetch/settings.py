"""What the guarded fetcher and the direct reader may do. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cluster.errors import UserError

_PRODUCT = re.compile(r"[A-Za-z_-]+")


@dataclass(frozen=True)
class FetchSettings:
    """Bounds of one fetch. There is no field that opens private addresses, and none may be added."""

    user_agent: str = "mmsearch-ray/0.1"
    # sent with every request; what stands before the slash is the product token that robots.txt is read for
    deadline: float = field(default=15.0, metadata={"gt": 0})
    # seconds for names, robots.txt, redirects, headers and body together
    max_redirects: int = field(default=5, metadata={"ge": 0})
    # each target is judged like a new address; RFC 9309 asks for five when fetching robots.txt
    max_bytes: int = field(default=4 * 2**20, metadata={"ge": 1})
    # of a body as it travels
    max_body_bytes: int = field(default=8 * 2**20, metadata={"ge": 1})
    # of a body once decompressed
    max_pixels: int = field(default=25_000_000, metadata={"ge": 1})
    # width times height of a picture, read from its header before anything is decoded
    ports: list[int] = field(default_factory=lambda: [80, 443])
    # ports of the web; others belong to services that were not meant to be read
    robots: bool = True
    # whether robots.txt is obeyed
    robots_sites: int = field(default=1000, metadata={"ge": 1})
    # sites whose robots.txt is remembered, least recently used first out
    allow: list[str] = field(default_factory=list)
    # "example.org" or "example.org/path", subdomains included; when not empty, nothing else is fetched
    deny: list[str] = field(default_factory=list)
    # of the same form; wins over `allow`
    deny_presets: list[str] = field(default_factory=lambda: ["benchmarks", "relays"])
    # ready lists of actors/search/fetch/domains.py, denied as well
    longest_retry_after: float = field(default=3600.0, metadata={"ge": 0})
    # seconds; a server that asks for more is believed this much
    max_chars: int = field(default=20_000, metadata={"ge": 1})
    # of a page's text that is handed on: the cap on verbatim quotes
    max_html_bytes: int = field(default=2 * 2**20, metadata={"ge": 1})
    # a longer page is cut here before its main text is looked for
    extraction_deadline: float = field(default=10.0, metadata={"gt": 0})
    # seconds for finding the main text; the process that takes longer is killed
    extraction_processes: int = field(default=1, metadata={"ge": 1})
    # of one reader; each holds a parser in memory

    def __post_init__(self) -> None:
        if not _PRODUCT.match(self.user_agent):
            raise UserError(f"user_agent {self.user_agent!r} must begin with a product name, as in 'name/1.0'")
        for name in ("max_bytes", "max_body_bytes", "max_pixels", "max_chars", "max_html_bytes", "robots_sites"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1")
        for name in ("deadline", "extraction_deadline"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be more than 0 seconds")

    @property
    def product(self) -> str:
        """The product token of RFC 9309: letters, `_` and `-`."""
        found = _PRODUCT.match(self.user_agent)
        assert found is not None  # __post_init__
        return found[0]
