"""A local retriever that speaks as Search-R1's does: POST /retrieve, no key, passages without addresses."""

from __future__ import annotations

from typing import Any

from actors.search.providers.http import Complaint, JsonApi, Reply
from actors.search.providers.shapes import listed, mapping, number, text, web_url
from actors.search.seams import ErrorKind, TextHit, TextQuery


class RetrieverSearch:
    """A passage is `{"contents": '"Title"\\nbody'}`, or has `title` and `text` of its own."""

    def __init__(
        self,
        *,
        base_url: str,  # for example http://retriever:8000
        timeout: float = 30.0,  # seconds
    ) -> None:
        self._api = JsonApi("Retriever", base_url, _complaint, timeout=timeout)

    async def search(self, query: TextQuery) -> list[TextHit]:
        # without scores the documented server fails, or mixes up the answers to two queries
        body = {"queries": [query.text], "topk": query.k, "return_scores": True}
        reply = await self._api.send("POST", "/retrieve", json=body)
        answers = listed(self._api, reply.body, "result")
        if not answers or len(answers) != 1 or not isinstance(answers[0], list):
            raise self._api.error(ErrorKind.SCHEMA, "gave no list of passages for the one query")
        passages = [_passage(mapping(row)) for row in answers[0]]
        found = [passage for passage in passages if passage.text]
        if passages and not found:
            raise self._api.error(ErrorKind.SCHEMA, f"gave {len(passages)} rows, and none with a passage")
        return found[: query.k]

    async def close(self) -> None:
        await self._api.close()


def _complaint(reply: Reply) -> Complaint | None:
    if reply.status < 300:
        return None
    # the body of the request is this adapter's, so a 422 is never the query's fault
    return Complaint(text(reply.body.get("detail")), ErrorKind.SCHEMA if reply.status == 422 else None)


def _passage(row: dict[str, Any]) -> TextHit:
    document = mapping(row.get("document"))
    title, body = text(document.get("title")), text(document.get("text"))
    if not body:
        body = text(document.get("contents"))
        first, _, rest = body.partition("\n")
        if first.startswith('"'):
            title, body = title or first.strip('" '), rest.strip()
    return TextHit(title, web_url(document.get("url")), body, number(row.get("score")))
