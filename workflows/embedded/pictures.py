"""Drawing: emblems, scenes of one to four emblems over varied backgrounds, all from seeds."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from workflows.embedded.entities import Emblem
from workflows.embedded.lexicon import COLOURS

SIDE = 112  # pixels: 16 tokens of the tiny model
_SCALE = 3  # drawn larger and scaled down, for smooth edges


@dataclass(frozen=True)
class Placed:
    """An emblem in a scene: centre and radius in pixels, angle in degrees."""

    emblem: Emblem
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """Placed emblems in raster order (top left first) over a background drawn from `backdrop`."""

    placed: tuple[Placed, ...]
    backdrop: int

    @property
    def crowded(self) -> bool:
        return len(self.placed) > 1

    @property
    def emblems(self) -> tuple[Emblem, ...]:
        return tuple(placed.emblem for placed in self.placed)


def compose(emblems: list[Emblem], rng: Random) -> Scene:
    """Place one emblem about the middle, or up to four in different quadrants.

    The places vary by a few pixels only: a tower of three layers that has seen some thousand pictures does not learn
    that a shape is the same wherever it falls on the grid of its patches.
    """
    if len(emblems) == 1:
        x, y = (SIDE / 2 + rng.uniform(-4, 4) for _ in range(2))
        return Scene((Placed(emblems[0], x, y, rng.uniform(28, 40), rng.uniform(-8, 8)),), rng.getrandbits(32))
    quadrants = sorted(rng.sample(range(4), len(emblems)))
    placed = []
    for quadrant, emblem in zip(quadrants, emblems, strict=True):
        x = SIDE * (0.25 + 0.5 * (quadrant % 2)) + rng.uniform(-2, 2)
        y = SIDE * (0.25 + 0.5 * (quadrant // 2)) + rng.uniform(-2, 2)
        placed.append(Placed(emblem, x, y, rng.uniform(19, 22), rng.uniform(-8, 8)))
    return Scene(tuple(placed), rng.getrandbits(32))


def render(scene: Scene, form: str = "PNG") -> bytes:
    """The scene, SIDE x SIDE pixels, in a lossless format of Pillow's; BMP costs a tenth of PNG's time."""
    picture = _backdrop(scene.backdrop).resize((SIDE * _SCALE, SIDE * _SCALE), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(picture)
    for placed in scene.placed:
        _draw(canvas, placed)
    out = io.BytesIO()
    picture.reduce(_SCALE).save(out, format=form, **({"compress_level": 1} if form == "PNG" else {}))
    return out.getvalue()


def web_picture(emblem: Emblem, number: int) -> bytes:
    """An emblem as a page shows it: alone, in one of several sizes and angles."""
    rng = Random(f"web-{number}-{emblem}")
    radius, angle = 24 + 6 * (number % 4), 4 * (number % 5) - 8
    scene = Scene((Placed(emblem, SIDE / 2, SIDE / 2, radius, angle),), rng.getrandbits(32))
    return render(scene)


def _backdrop(seed: int) -> Image.Image:
    """A pale or dark unsaturated ground: plain, a gradient, stripes or speckles. float noise keeps it unique."""
    rng = np.random.default_rng(seed)
    base = rng.choice([rng.uniform(0.12, 0.3), rng.uniform(0.7, 0.95)])
    field = np.full((SIDE, SIDE), base)
    across, down = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    pattern = rng.integers(4)
    if pattern == 1:
        field += 0.08 * (across * rng.uniform(-1, 1) + down * rng.uniform(-1, 1))
    elif pattern == 2:
        field += 0.05 * np.sign(np.sin((across * rng.uniform(-1, 1) + down) * rng.uniform(8, 20)))
    elif pattern == 3:
        field += 0.05 * rng.standard_normal((SIDE, SIDE))
    tint = rng.uniform(-0.02, 0.02, size=3)
    pixels = np.clip((field[..., None] + tint) * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _draw(draw: ImageDraw.ImageDraw, placed: Placed) -> None:
    emblem = placed.emblem
    x, y, radius = placed.x * _SCALE, placed.y * _SCALE, placed.radius * _SCALE
    colour = COLOURS[emblem.colour]
    if emblem.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        draw.polygon(_outline(emblem.shape, x, y, radius, placed.angle), fill=colour)
    # a heart's notch reaches down: its mark sits lower and stays inside
    drop, size = (0.12, 0.38) if emblem.shape == "heart" else (0.0, 0.46)
    _draw_mark(draw, emblem.mark, x, y + drop * radius, size * radius)


def _outline(shape: str, x: float, y: float, radius: float, angle: float) -> list[tuple[float, float]]:
    turn = math.radians(angle)
    points = [(r * math.sin(a), -r * math.cos(a)) if shape != "heart" else (r, a) for r, a in _polar(shape)]
    rotated = [
        (px * math.cos(turn) - py * math.sin(turn), px * math.sin(turn) + py * math.cos(turn)) for px, py in points
    ]
    return [(x + radius * px, y + radius * py) for px, py in rotated]


def _polar(shape: str) -> list[tuple[float, float]]:
    """Corners as (radius, angle clockwise from the top); for the heart as (x, y)."""
    circle = 2 * math.pi
    if shape == "square":
        return [(1.1, circle * (i + 0.5) / 4) for i in range(4)]
    if shape == "triangle":
        return [(1.15, circle * i / 3) for i in range(3)]
    if shape == "diamond":
        return [(1.1 if i % 2 == 0 else 0.72, circle * i / 4) for i in range(4)]
    if shape == "hexagon":
        return [(1.0, circle * (i + 0.5) / 6) for i in range(6)]
    if shape == "star":
        return [(1.15 if i % 2 == 0 else 0.55, circle * i / 10) for i in range(10)]
    if shape == "cross":
        a = math.atan2(0.42, 1.0)
        r, inner = math.hypot(0.42, 1.0), math.hypot(0.42, 0.42)
        return [(rr, circle * q / 4 + aa) for q in range(4) for rr, aa in ((r, -a), (r, a), (inner, circle / 8))]
    steps = [circle * i / 40 for i in range(40)]  # a heart, scaled from its usual parametric form
    return [
        (
            16 * math.sin(t) ** 3 / 16,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in steps
    ]


def _draw_mark(draw: ImageDraw.ImageDraw, mark: str, x: float, y: float, size: float) -> None:
    white, thin = (255, 255, 255), max(2, round(size * 0.4))
    if mark == "dot":
        draw.ellipse((x - size * 0.8, y - size * 0.8, x + size * 0.8, y + size * 0.8), fill=white)
    elif mark == "ring":
        draw.ellipse((x - size, y - size, x + size, y + size), outline=white, width=thin)
    elif mark == "bar":
        draw.rectangle((x - size, y - thin / 2, x + size, y + thin / 2), fill=white)
    elif mark == "pillar":
        draw.rectangle((x - thin / 2, y - size, x + thin / 2, y + size), fill=white)
    else:
        draw.rectangle((x - size, y - thin / 2, x + size, y + thin / 2), fill=white)
        draw.rectangle((x - thin / 2, y - size, x + thin / 2, y + size), fill=white)
