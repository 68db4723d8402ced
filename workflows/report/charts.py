"""Lines and stacked areas as SVG, from plain numbers. Pure.

A point without a value is a gap in its line, never a zero. Colours are classes (`c0`, `c1`, ...), which the page's
style sheet maps to a palette for light and for dark. Each chart carries its title and a description for those who
cannot see it, and comes with the data that its hover readout shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from workflows.report.scales import Scale, span, ticks, written

WIDTH, HEIGHT = 400.0, 212.0
TOP, BOTTOM = 10.0, 24.0
GLYPH = 7.0  # pixels of a character of an end label, in the widest of the system fonts
LABEL_HEIGHT = 13.0
LONGEST_LABEL = 12  # characters of a name that stands at the end of its line; longer ones are in the legend
STRIP = 1.5  # pixels to each side
MUTED = 7  # the colour of what is no curve
MOST_POINTS = 240  # of a drawn line: more are averaged, as a screen shows no more

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Line:
    """One curve. `points` ascend in x; None is a gap."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    dash: int = 0  # 0: solid
    faint: tuple[Point, ...] = ()  # the same before smoothing
    marks: bool = False  # a dot at every point
    key: str = ""  # what its dash means, where colours mean runs, which the page explains once


@dataclass(frozen=True)
class Chart:
    """A title, what it shows in a sentence, and its curves. `stacked`: areas on top of each other."""

    title: str
    says: str
    lines: tuple[Line, ...]
    unit: str = ""
    ceiling: float | None = None  # of the y axis, where it is known
    stacked: bool = False


@dataclass(frozen=True)
class Drawn:
    """`hover` is plain JSON: the plot's place and domain, and the curves by x."""

    title: str
    says: str
    svg: Markup
    legend: tuple[tuple[str, int, int], ...]  # name, colour, dash; empty where the labels at the ends suffice
    hover: dict[str, Any]


def draw(chart: Chart, key: str) -> Drawn | None:
    """None where there is nothing to draw. `key` makes the ids of its parts unique in the page."""
    lines = [thinned(line) for line in chart.lines if any(y is not None for _, y in line.points)]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    tops = stack(lines) if chart.stacked else [[y for _, y in line.points] for line in lines]
    ys = [y for top in tops for y in top if y is not None]
    ys += [y for line in lines for _, y in line.faint if y is not None]
    low, high = span(min(ys), max(ys) if chart.ceiling is None else max(chart.ceiling, max(ys)))
    named = all(len(line.name) <= LONGEST_LABEL for line in lines) or chart.stacked
    labels = [_label(line, chart, named) for line in lines]
    right = min(WIDTH * 0.36, 10 + GLYPH * max(map(len, labels)))
    first, last = min(xs), max(xs)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    left = 8 + GLYPH * max(len(text) for _, text in _marks(y))
    x = Scale(first, last if last > first else first + 1, left, WIDTH - right)
    parts = [_axes(x, y, last > first)]
    if chart.stacked:
        parts += [_area(line, tops, i, x, y) for i, line in enumerate(lines)]
    else:
        parts += [_path(line.faint, x, y, f"faint c{line.colour}") for line in lines if line.faint]
        parts += [_path(line.points, x, y, f"line c{line.colour} d{line.dash}", line.marks) for line in lines]
    parts.append(_end_labels(lines, labels, tops, y, WIDTH - right + 6, chart.stacked))
    svg = Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" role="img" aria-labelledby="{k}-t {k}-d">'
        '<title id="{k}-t">{t}</title><desc id="{k}-d">{d}</desc>{body}'
        '<line class="cross" x1="0" x2="0" y1="{top:.0f}" y2="{bottom:.0f}"/></svg>'
    ).format(
        w=WIDTH, h=HEIGHT, k=key, t=chart.title, d=_described(chart, lines), body=Markup("").join(parts),
        top=TOP, bottom=HEIGHT - BOTTOM,
    )  # fmt: skip
    legend = () if named and not chart.stacked else tuple((line.name, line.colour, line.dash) for line in lines)
    if any(line.key for line in lines):
        legend = tuple(dict.fromkeys((line.key, MUTED, line.dash) for line in lines if line.key))
    return Drawn(chart.title, chart.says, svg, legend, _hover(chart, lines, x, y))


def stack(lines: Sequence[Line]) -> list[list[float | None]]:
    """The upper edges of areas on top of each other; a gap in one is a gap in all. x values are the first line's."""
    edges: list[list[float | None]] = []
    below: list[float | None] = [0.0] * len(lines[0].points)
    holes = [any(i < len(line.points) and line.points[i][1] is None for line in lines) for i in range(len(below))]
    for line in lines:
        values = [value for _, value in line.points]
        below = [
            None if hole or b is None or i >= len(values) or values[i] is None else b + max(0.0, values[i] or 0.0)
            for i, (b, hole) in enumerate(zip(below, holes, strict=True))
        ]
        edges.append(below)
    return edges


def thinned(line: Line, most: int = MOST_POINTS) -> Line:
    """At most so many points: means over neighbours; a bin of gaps stays one."""
    return Line(
        line.name, bins(line.points, most), line.colour, line.dash, bins(line.faint, most), line.marks, line.key
    )  # fmt: skip


def bins(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    if len(points) <= most:
        return tuple(points)
    size = -(-len(points) // most)
    found: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [y for _, y in part if y is not None]
        found.append((part[len(part) // 2][0], sum(values) / len(values) if values else None))
    return tuple(found)


def smooth(points: Sequence[Point], window: int) -> tuple[Point, ...]:
    """The mean of up to `window` neighbours around each point; gaps stay, and enter no mean."""
    half = window // 2
    found: list[Point] = []
    for i, (x, y) in enumerate(points):
        near = [v for _, v in points[max(0, i - half) : i + half + 1] if v is not None]
        found.append((x, None if y is None else sum(near) / len(near)))
    return tuple(found)


def _marks(y: Scale) -> list[tuple[float, str]]:
    marks = ticks(y.low, y.high)
    step = marks[1] - marks[0] if len(marks) > 1 else None
    return [(mark, written(mark, step)) for mark in marks]


def _axes(x: Scale, y: Scale, several: bool) -> Markup:
    parts = [
        Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
               '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
            x.start, x.end, y(mark), y(mark), x.start - 6, y(mark) + 3.8, text)
        for mark, text in _marks(y)
    ]  # fmt: skip
    across = [mark for mark in ticks(x.low, x.high) if mark == int(mark)] if several else [x.low]
    parts += [
        Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            x(mark), HEIGHT - BOTTOM + 16, written(mark, 1.0))
        for mark in across
    ]  # fmt: skip
    return Markup("").join(parts)


def _runs(points: Iterable[Point]) -> list[list[tuple[float, float]]]:
    """Stretches without gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [run for run in found if run]


def _path(points: Sequence[Point], x: Scale, y: Scale, classes: str, marks: bool = False) -> Markup:
    """A stretch of one point, which would be no line, is a dot."""
    runs = _runs(points)
    words = " ".join("M" + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in run) for run in runs if len(run) > 1)
    drawn = Markup('<path class="{}" d="{}"/>').format(classes, words) if words else Markup("")
    dots = [point for run in runs for point in run if marks or len(run) == 1]
    colour = next(word for word in classes.split() if word[0] == "c")
    return drawn + Markup("").join(
        Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(colour, x(a), y(b)) for a, b in dots
    )


def _area(line: Line, tops: Sequence[Sequence[float | None]], i: int, x: Scale, y: Scale) -> Markup:
    lower = tops[i - 1] if i else [0.0] * len(tops[0])
    upper = [(a, None if b is None else (b, low)) for (a, _), b, low in zip(line.points, tops[i], lower, strict=False)]
    polygons: list[list[tuple[float, float, float]]] = [[]]
    for a, pair in upper:
        if pair is None:
            polygons.append([])
        else:
            polygons[-1].append((a, pair[0], pair[1] or 0.0))
    words = []
    for run in (run for run in polygons if run):
        edges = [(x(a), y(top), y(low)) for a, top, low in run]
        if len(edges) == 1:  # a stretch of one point is a thin strip
            ((at, top, low),) = edges
            edges = [(max(x.start, at - STRIP), top, low), (min(x.end, at + STRIP), top, low)]
        there = [f"{at:.1f},{top:.1f}" for at, top, _ in edges]
        back = [f"{at:.1f},{low:.1f}" for at, _, low in reversed(edges)]
        words.append("M" + " ".join(there + back) + "Z")
    return Markup('<path class="area c{}" d="{}"/>').format(line.colour, " ".join(words))


def _end_labels(
    lines: Sequence[Line], labels: Sequence[str], tops: Sequence[Sequence[float | None]], y: Scale, at: float,
    stacked: bool,
) -> Markup:  # fmt: skip
    """Beside the last value of each, moved apart where they would overlap."""
    places = []
    for i, (line, label) in enumerate(zip(lines, labels, strict=True)):
        known = [value for value in tops[i] if value is not None]
        if known:
            low = next((v for v in reversed(tops[i - 1]) if v is not None), 0.0) if stacked and i else 0.0
            places.append([y((known[-1] + low) / 2 if stacked else known[-1]), label, line.colour])
    return Markup("").join(
        Markup('<text class="end c{}" x="{:.1f}" y="{:.1f}">{}</text>').format(colour, at, where + 3.8, label)
        for where, label, colour in apart(places, TOP, HEIGHT - BOTTOM)
    )


def apart(places: Sequence[Sequence[Any]], top: float, bottom: float) -> list[list[Any]]:
    """Labels [y, ...] at least a line's height from each other, in their order, within [top, bottom] if they fit."""
    found = sorted([list(place) for place in places], key=lambda place: place[0])
    for before, after in pairwise(found):
        after[0] = max(after[0], before[0] + LABEL_HEIGHT)
    if found and found[-1][0] > bottom:
        found[-1][0] = bottom
        for before, after in reversed(list(pairwise(found))):
            before[0] = max(min(before[0], after[0] - LABEL_HEIGHT), top if before is found[0] else -1e9)
    return found


def _label(line: Line, chart: Chart, named: bool) -> str:
    if chart.stacked:
        return line.name
    last = next((value for _, value in reversed(line.points) if value is not None), 0.0)
    value = f"{last:.2f}" if chart.ceiling == 1.0 else written(last)
    return f"{line.name} {value}" if named else value


def _described(chart: Chart, lines: Sequence[Line]) -> str:
    """For those who cannot see it: from what to what each curve goes."""
    told = []
    for line in lines:
        values = [value for _, value in line.points if value is not None]
        told.append(f"{line.name or chart.title}: from {written(values[0])} to {written(values[-1])}")
    return f"{chart.says} {'; '.join(told)}."


def _hover(chart: Chart, lines: Sequence[Line], x: Scale, y: Scale) -> dict[str, Any]:
    return {
        "plot": [x.start, x.end, y.end, y.start],
        "x": [x.low, x.high],
        "y": [y.low, y.high],
        "unit": chart.unit,
        "stacked": chart.stacked,
        "lines": [
            {
                "name": line.name or chart.title,
                "c": line.colour,
                "x": [round(a, 2) for a, _ in line.points],
                "y": [None if b is None else float(f"{b:.4g}") for _, b in line.points],
            }
            for line in lines
        ],
    }
