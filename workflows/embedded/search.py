"""The embedded world's search engine, behind the seams that real providers implement.

Text by BM25 over the pages, pictures by nearest descriptor over the web's pictures, grounding by segmentation. It is
built from what the web holds (`pages.parquet`, `pictures.parquet` of a world's folder) and knows no question.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.search.seams import ErrorKind, ImageHit, ImageQuery, ProviderError, ScoredBox, TextHit, TextQuery
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.embedded import sight
from workflows.embedded.entities import World
from workflows.embedded.pages import make_pages
from workflows.embedded.pictures import web_picture

PAGES, PICTURES = "pages.parquet", "pictures.parquet"
PICTURES_EACH = 5  # of one emblem on the web, in different sizes and angles


def publish_web(world: World, folder: Folder) -> None:
    """Write the web of a world: its pages, and pictures of every emblem with the page they stand on."""
    pages = make_pages(world)
    rows = {
        "url": [page.url for page in pages],
        "title": [page.title for page in pages],
        "text": [page.text for page in pages],
        "links": [list(page.links) for page in pages],
    }
    folder.write_bytes(PAGES, _parquet(rows))
    organisations = sorted(world.organisations, key=lambda it: it.name)
    shown = [(it, number) for it in organisations for number in range(PICTURES_EACH)]
    pictures = {
        "url": [f"https://web.example/{it.trade}/{it.name}/emblem/{number}" for it, number in shown],
        "title": [it.name for it, _ in shown],
        "text": [f"emblem of the {it.trade}." for it, _ in shown],
        "image": [web_picture(it.emblem, number) for it, number in shown],
    }
    folder.write_bytes(PICTURES, _parquet(pictures))


class EmbeddedTextSearch:
    """BM25 over title and text of every page."""

    def __init__(self, folder: str) -> None:
        import bm25s

        table = _read(folder, PAGES)
        self._titles, self._urls, self._texts = (table[name].to_pylist() for name in ("title", "url", "text"))
        corpus = [f"{title} {text}" for title, text in zip(self._titles, self._texts, strict=True)]
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(corpus, stopwords="en", show_progress=False), show_progress=False)
        self._tokenize = bm25s.tokenize

    async def search(self, query: TextQuery) -> list[TextHit]:
        tokens = self._tokenize(query.text, stopwords="en", show_progress=False, return_ids=False)
        if not tokens[0]:
            return []
        k = min(query.k, len(self._urls))
        found, scores = self._index.retrieve(tokens, k=k, show_progress=False, n_threads=1)
        return [
            TextHit(self._titles[i], self._urls[i], self._texts[i], float(score))
            for i, score in zip(found[0].tolist(), scores[0].tolist(), strict=True)
            if score > 0
        ]


class EmbeddedImageSearch:
    """Nearest pictures by a descriptor of their pixels, exact inner product."""

    def __init__(self, folder: str, min_score: float = 0.45) -> None:
        import faiss

        table = _read(folder, PICTURES)
        self._titles, self._urls, self._texts = (table[name].to_pylist() for name in ("title", "url", "text"))
        self._images: list[bytes] = table["image"].to_pylist()
        vectors = np.stack([sight.describe(sight.decode(image)) for image in self._images])
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        self._min_score = min_score  # the same emblem scores 0.97 and more, one among several less than this

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        vector = sight.describe(_decoded(image.image))
        scores, found = self._index.search(vector[None], min(image.k * PICTURES_EACH, len(self._urls)))
        hits: dict[str, ImageHit] = {}  # the best picture of each title
        for i, score in zip(found[0].tolist(), scores[0].tolist(), strict=True):
            if i >= 0 and score >= self._min_score:
                hit = ImageHit(self._titles[i], self._urls[i], self._texts[i], float(score), self._images[i])
                hits.setdefault(hit.title, hit)
        return list(hits.values())[: image.k]


class EmbeddedGrounder:
    """Finds what an expression names by colour and shape among the segmented things of a picture."""

    async def ground(self, image: bytes, expression: str) -> list[ScoredBox]:
        things = sight.segment(_decoded(image))
        return [ScoredBox(_floats(*thing.box), sight.match(thing, expression)) for thing in things]


def _floats(x0: int, y0: int, x1: int, y1: int) -> tuple[float, float, float, float]:
    return float(x0), float(y0), float(x1), float(y1)


def _decoded(image: bytes) -> sight.Pixels:
    try:
        return sight.decode(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ProviderError(ErrorKind.BAD_REQUEST, f"the picture cannot be read: {error}") from error


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _read(folder: str, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(Folder(folder).read_bytes(name)))
    except FileNotFoundError:
        raise UserError(
            f"There is no embedded world at {folder} yet: `mmsearch demo` makes one, first of all; or name other tools"
            " in search.text, search.image and search.grounder."
        ) from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} of the embedded world at {folder} cannot be read: {reason}") from error
