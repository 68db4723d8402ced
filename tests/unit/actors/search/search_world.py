"""A small real world for the tests of search: BM25 over a dozen sentences, pictures drawn by PIL, pixel features.

Its classes are named by dotted path in configurations, as a user's own providers would be.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
from pathlib import Path

import bm25s
import numpy as np
from PIL import Image, ImageDraw

from actors.agent.seams import ImageMissing, ImageRefused
from actors.agent.trajectory import ImageRef
from actors.search.seams import ImageHit, ImageQuery, ScoredBox, TextHit, TextQuery

SENTENCES = (
    "Velmora was founded by Ilse Tarn in 1931.",
    "Quentix makes bicycles in the city of Dorn.",
    "The river Ansel flows through Dorn and ends in the sea.",
    "Ilse Tarn was born in Prell and studied chemistry.",
    "Brakka is a company that grows tea on terraces.",
    "Pellucid Works moved from Prell to Ostra last year.",
    "The old mill of Ostra is now a museum of glass.",
    "Norvane sells maps and compasses to sailors.",
    "A comet was seen over Dorn in the winter of 1899.",
    "The harbour of Ostra was rebuilt after the flood.",
    "Tea from the terraces won a prize in Prell.",
    "Glass from Pellucid Works is thin and green.",
)
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
SIZE = 96


def scene(*colours: str) -> bytes:
    """A PNG of SIZE x SIZE pixels with one filled square of 24 pixels per colour, left to right."""
    picture = Image.new("RGB", (SIZE, SIZE), (200, 200, 200))
    for i, colour in enumerate(colours):
        left = 4 + i * 30
        ImageDraw.Draw(picture).rectangle((left, 36, left + 23, 59), fill=COLOURS[colour])
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()


class FolderImages:
    """An ImageStore on disk, so that several processes share it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def put(self, data: bytes) -> ImageRef:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                width, height = picture.size
        except OSError as error:
            raise ImageRefused(str(error)) from error
        return self.put_unchecked(data, width, height)

    def put_unchecked(self, data: bytes, width: int, height: int) -> ImageRef:
        digest = hashlib.sha256(data).hexdigest()
        (Path(self.folder) / digest).write_bytes(data)
        return ImageRef(digest, width, height)

    def get(self, ref: ImageRef) -> bytes:
        try:
            return (Path(self.folder) / ref.sha256).read_bytes()
        except FileNotFoundError as error:
            raise ImageMissing(ref.sha256) from error


class Sentences:
    """Text search by BM25."""

    def __init__(self) -> None:
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize(list(SENTENCES), show_progress=False), show_progress=False)

    async def search(self, query: TextQuery) -> list[TextHit]:
        tokens = bm25s.tokenize(query.text, show_progress=False)
        found, scores = self.index.retrieve(tokens, k=min(query.k, len(SENTENCES)), show_progress=False)
        return [
            TextHit(f"Page {i}", f"https://pages.example/{i}", SENTENCES[i], float(score))
            for i, score in zip(found[0].tolist(), scores[0].tolist(), strict=True)
            if score > 0
        ]


class DiesOnce(Sentences):
    """Kills its own process, hard, in the middle of the first search that finds no mark left by a death."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = Path(mark)

    async def search(self, query: TextQuery) -> list[TextHit]:
        if not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0)
        return await super().search(query)


class Colours:
    """Image search: the colour nearest to the mean colour of what is not background; with a thumbnail."""

    async def search(self, image: ImageQuery) -> list[ImageHit]:
        seen = _mean_colour(image.image)
        ranked = sorted(COLOURS, key=lambda name: float(np.abs(np.subtract(COLOURS[name], seen)).sum()))
        return [
            ImageHit(f"A {name} square", f"https://squares.example/{name}", "", 1.0 / (1 + i), scene(name))
            for i, name in enumerate(ranked[: image.k])
        ]


class Squares:
    """Grounding: the box of all pixels of the colour that the expression names."""

    async def ground(self, image: bytes, expression: str) -> list[ScoredBox]:
        pixels = _pixels(image)
        boxes = []
        for name, colour in COLOURS.items():
            rows, columns = np.nonzero((pixels == colour).all(axis=2))
            if name in expression and len(rows):
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                boxes.append(ScoredBox(tuple(float(v) for v in box), 0.9))  # type: ignore[arg-type]
        return boxes


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def _mean_colour(data: bytes) -> np.ndarray:
    pixels = _pixels(data).reshape(-1, 3)
    coloured = pixels[(pixels != 200).any(axis=1)]
    return coloured.mean(axis=0) if len(coloured) else np.zeros(3)
