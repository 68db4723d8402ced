"""Pure geometry of crops. Boxes are x0, y0, x1, y1; pixels unless said otherwise; x1, y1 are exclusive.

The rule for a referring expression, stated once: detections below `min_score` or smaller than `min_box` do
not count; of the rest the best score wins, then the larger area, then the one further up, then further left.
None left: the whole image is searched, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from actors.search.seams import ScoredBox
from actors.search.settings import RegionSettings

Box = tuple[int, int, int, int]
THOUSANDTHS = 1000


def in_pixels(box: Box, width: int, height: int) -> Box | None:
    """A box in thousandths of an image, in pixels, rounded outwards; None when it is not one inside it."""
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= THOUSANDTHS and 0 <= y0 < y1 <= THOUSANDTHS):
        return None
    return (
        x0 * width // THOUSANDTHS,
        y0 * height // THOUSANDTHS,
        -(-x1 * width // THOUSANDTHS),
        -(-y1 * height // THOUSANDTHS),
    )


def clamp(box: tuple[float, float, float, float], width: int, height: int) -> Box | None:
    """The part of `box` inside the image, rounded outwards; None when nothing is left of it."""
    if not all(math.isfinite(v) for v in box):
        return None
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x1, y1 = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def shorter_side(box: Box) -> int:
    return min(box[2] - box[0], box[3] - box[1])


def padded(box: Box, width: int, height: int, region: RegionSettings) -> Box:
    """`box` (inside the image) with its padding, grown to the minimum side where the image allows it.

    Always contains `box` and lies inside the image.
    """
    margin = math.ceil(region.padding * max(box[2] - box[0], box[3] - box[1]))
    x0, x1 = _grown(box[0], box[2], margin, region.min_side, width)
    y0, y1 = _grown(box[1], box[3], margin, region.min_side, height)
    return (x0, y0, x1, y1)


def _grown(low: int, high: int, margin: int, least: int, size: int) -> tuple[int, int]:
    """An interval with `margin` on both sides and at least `least` long, pushed back into [0, size)."""
    missing = max(0, least - (high - low + 2 * margin))
    low, high = low - margin - missing // 2, high + margin + (missing - missing // 2)
    if low < 0:
        low, high = 0, max(high, min(least, size))
    if high > size:
        low, high = min(low, size - min(least, size)), size
    return max(0, low), min(size, high)


def chosen(detections: Iterable[ScoredBox], width: int, height: int, region: RegionSettings) -> Box | None:
    """The detection to crop, clamped to the image, by the rule of this module; None when none counts."""
    best: tuple[float, int, int, int] | None = None
    winner: Box | None = None
    for detection in detections:
        box = clamp(detection.box, width, height)
        if box is None or not detection.score >= region.min_score or shorter_side(box) < region.min_box:
            continue
        rank = (detection.score, (box[2] - box[0]) * (box[3] - box[1]), -box[1], -box[0])
        if best is None or rank > best:
            best, winner = rank, box
    return winner
