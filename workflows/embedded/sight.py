"""Computer vision of the embedded world's engine: it sees pixels and nothing else.

Emblems are saturated, backgrounds are not: a saturation threshold separates them, connected components are the things
in the picture, hue says their colour, and the silhouette's overlap with drawn templates says their shape.
"""

from __future__ import annotations

import colorsys
import io
import re
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from workflows.embedded.entities import Emblem
from workflows.embedded.lexicon import COLOURS, MARKS, SHAPES
from workflows.embedded.pictures import SIDE, web_picture

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_SATURATED = 0.2  # (max - min) of the channels, in 0..1; backgrounds stay under 0.1
_SMALLEST = 40  # pixels of a thing; smaller components are noise
_TEMPLATE = 32  # silhouettes are compared at this size
_FEATURE = 20  # side of the retrieval descriptor


@dataclass(frozen=True)
class Thing:
    """A segmented object: its box in pixels, how well it fits each colour and shape (0..1)."""

    box: tuple[int, int, int, int]
    colours: dict[str, float]
    shapes: dict[str, float]


def decode(data: bytes) -> Pixels:
    """uint8[height, width, 3]. Raise PIL's errors for what is not an image."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def foreground(pixels: Pixels) -> Mask:
    """Where something coloured is: bool[height, width]."""
    spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return spread > _SATURATED * 255


def segment(pixels: Pixels) -> list[Thing]:
    """The coloured things of a picture, from the top left on."""
    mask = foreground(pixels)
    whole = _filled(mask).astype(np.uint8)  # filled, so that what stands inside a ring belongs to its emblem
    count, _, stats, _ = cv2.connectedComponentsWithStats(whole, connectivity=8)
    things = []
    for i in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[i])
        if area >= _SMALLEST and min(w, h) >= 6:
            things.append(_thing(pixels, mask, (x, y, x + w, y + h)))
    return sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))


def describe(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Retrieval descriptor of all coloured pixels together, position and size removed: float32[d], unit length.

    Three parts: mean colour, silhouette, and what is left out inside the silhouette (the inner mark). One emblem alone
    has nearly the descriptor of its catalogue picture. Several together have that of none of them.
    """
    mask = foreground(pixels)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(3 + 2 * _FEATURE * _FEATURE, dtype=np.float32)
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    filled = _filled(mask)
    colour = pixels[mask].mean(axis=0) / 255 - 0.5
    outline = _shrunk(filled[window]) - 0.5
    holes = _shrunk((filled & ~mask)[window])
    mark = cv2.GaussianBlur(holes, (3, 3), 0.7)
    parts = [_unit(colour), _unit(outline.ravel()), _unit(mark.ravel() - mark.mean())]
    return np.concatenate(parts).astype(np.float32) / np.sqrt(len(parts)).astype(np.float32)


def _shrunk(mask: Mask) -> npt.NDArray[np.float32]:
    shrunk = cv2.resize(mask.astype(np.float32), (_FEATURE, _FEATURE), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.float32)


def _unit(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def match(thing: Thing, expression: str) -> float:
    """How well a thing fits a referring expression: product over the colours and shapes it names; 0 if none."""
    words = set(re.findall(r"[a-z]+", expression.lower()))
    scores = [thing.colours[c] for c in COLOURS if c in words] + [thing.shapes[s] for s in SHAPES if s in words]
    return float(np.prod(scores)) if scores else 0.0


def _filled(mask: Mask) -> Mask:
    """The mask with holes (white inner marks) filled."""
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    cv2.floodFill(outside, None, (0, 0), (2.0,))
    return (outside != 2)[1:-1, 1:-1]


def _thing(pixels: Pixels, mask: Mask, box: tuple[int, int, int, int]) -> Thing:
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    colour = np.median(pixels[y0:y1, x0:x1][inside], axis=0)
    return Thing(box, _colour_fits(colour), _shape_fits(_silhouette(inside)))


def _silhouette(mask: Mask) -> Mask:
    filled = _filled(mask).astype(np.float32)
    return cv2.resize(filled, (_TEMPLATE, _TEMPLATE), interpolation=cv2.INTER_AREA) > 0.5


def _colour_fits(colour: npt.NDArray[np.floating]) -> dict[str, float]:
    hue = colorsys.rgb_to_hsv(*(colour / 255))[0]
    fits = {}
    for name, reference in COLOURS.items():
        apart = abs(hue - colorsys.rgb_to_hsv(*(channel / 255 for channel in reference))[0])
        fits[name] = float(np.exp(-((min(apart, 1 - apart) / 0.035) ** 2)))
    return fits


def _shape_fits(silhouette: Mask) -> dict[str, float]:
    overlaps = {}
    for shape, template in _templates().items():
        overlap = (silhouette & template).sum() / max(1, (silhouette | template).sum())
        overlaps[shape] = float(overlap)
    best = max(overlaps.values())
    return {shape: float(np.exp(-(((best - overlap) / 0.05) ** 2))) for shape, overlap in overlaps.items()}


@lru_cache(maxsize=1)
def _templates() -> dict[str, Mask]:
    colour = next(iter(COLOURS))
    made = {}
    for shape in SHAPES:
        mask = foreground(decode(web_picture(Emblem(shape, colour, MARKS[0]), number=2)))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        made[shape] = _silhouette(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return made


__all__ = ["SIDE", "Thing", "decode", "describe", "foreground", "match", "segment"]
