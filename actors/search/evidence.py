"""Hits of any provider as evidence: neutralised, bounded, numbered from 1, with provenance."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from actors.agent.seams import ImageRefused, ImageStore
from actors.agent.trajectory import Evidence, ImageRef
from actors.agent.untrusted import neutralise, one_line
from actors.search.seams import ImageHit, TextHit
from actors.search.settings import SearchSettings

MAX_URL_CHARS = 2048  # longer ones are not addresses that anybody opens
_ELLIPSIS = "…"


def evidence_of(
    hits: Sequence[TextHit | ImageHit],
    provider: str,
    retrieved_at: float,
    settings: SearchSettings,
    thumbnails: Sequence[ImageRef | None] = (),
) -> tuple[Evidence, ...]:
    """At most `top_k` pieces; hits that say nothing are left out. `thumbnails` run parallel to `hits`."""
    rows: list[Evidence] = []
    for position, hit in enumerate(hits[: settings.top_k]):
        title = bounded(one_line(hit.title), settings.max_title_chars)
        text = bounded(neutralise(hit.text), settings.max_text_chars)
        thumbnail = thumbnails[position] if thumbnails else None
        if not (title or text or thumbnail):
            continue
        rows.append(
            Evidence(
                number=len(rows) + 1,
                title=title,
                text=text,
                url=one_line(hit.url)[:MAX_URL_CHARS],
                provider=provider,
                retrieved_at=retrieved_at,
                content_sha256=content_sha256(hit.text),
                thumbnail=thumbnail,
            )
        )
    return tuple(rows)


def stored_thumbnails(hits: Sequence[ImageHit], images: ImageStore) -> list[ImageRef | None]:
    """References to the hits' thumbnails; None for those that have none or that are no acceptable picture."""
    return [_stored(hit.thumbnail, images) if hit.thumbnail else None for hit in hits]


def _stored(thumbnail: bytes, images: ImageStore) -> ImageRef | None:
    try:
        return images.put(thumbnail)
    except ImageRefused:
        return None  # the hit is worth its text without a picture


def bounded(text: str, max_chars: int) -> str:
    """At most `max_chars` characters, cut between words where there is one to cut at."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    if max_chars < 2:
        return text[:max_chars]
    head = text[: max_chars - 1]
    cut = re.search(r"\s\S*$", head)
    if not text[max_chars - 1].isspace() and cut and cut.start() > max_chars // 2:
        head = head[: cut.start()]
    return head.rstrip() + _ELLIPSIS


def content_sha256(text: str) -> str:
    """Of what was retrieved, before anything was done to it."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
