"""Bars and dots for a handful of arms, as SVG: shares that add up, and values with their intervals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from workflows.report.scales import Scale, ticks

WIDTH = 640.0
ROW, BAR = 34.0, 20.0
TOP, BOTTOM = 6.0, 24.0
GLYPH = 7.6  # pixels of a character, in the widest of the system fonts
NARROWEST_NUMBER = 30.0  # pixels that a number needs inside its segment


@dataclass(frozen=True)
class Bar:
    """A row of segments whose values are shares of one."""

    name: str
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Dot:
    """A value between 0 and 1, with its interval where it is known."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def stacked(bars: Sequence[Bar], segments: Sequence[tuple[str, str]], title: str, key: str) -> Markup:
    """`segments`: (name, class) of each share. Shares of a row are drawn from the left, with numbers where they fit."""
    left = _left([bar.name for bar in bars])
    x = Scale(0.0, 1.0, left, WIDTH - 26)
    parts = [_axis(x, len(bars))]
    for row, bar in enumerate(bars):
        y, start = TOP + row * ROW, 0.0
        parts.append(_name(bar.name, left, y))
        for (name, style), share in zip(segments, bar.shares, strict=True):
            wide = x(start + share) - x(start)
            parts.append(
                Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                       "<title>{}, {}: {:.1%}</title></rect>").format(
                    style, x(start), y + (ROW - BAR) / 2, max(0.0, wide), BAR, bar.name, name, share)
            )  # fmt: skip
            if wide >= NARROWEST_NUMBER:
                parts.append(
                    Markup('<text class="inside on-{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">'
                           "{:.0f}</text>").format(style, x(start + share / 2), y + ROW / 2 + 4, 100 * share)
                )  # fmt: skip
            start += share
    said = "; ".join(
        f"{bar.name}: " + ", ".join(f"{n} {s:.1%}" for (n, _), s in zip(segments, bar.shares, strict=True))
        for bar in bars
    )
    return _framed(parts, len(bars), title, said, key)


def dots(values: Sequence[Dot], title: str, key: str) -> Markup:
    """A dot for each value on a scale from 0 to 1, and a line for its interval."""
    left = _left([dot.name for dot in values])
    x = Scale(0.0, 1.0, left, WIDTH - 54)
    parts = [_axis(x, len(values))]
    for row, dot in enumerate(values):
        y = TOP + row * ROW + ROW / 2
        parts.append(_name(dot.name, left, TOP + row * ROW))
        low, high = dot.low, dot.high
        if low is not None and high is not None:
            low, high = max(0.0, low), min(1.0, high)
            parts.append(
                Markup('<line class="interval c0" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    x(low), x(high), y, y)
            )  # fmt: skip
        parts.append(
            Markup('<circle class="dot c0" cx="{:.1f}" cy="{:.1f}" r="4.5"/>'
                   '<text class="value" x="{:.1f}" y="{:.1f}">{:.1f}</text>').format(
                x(dot.value), y, x(high if high is not None else dot.value) + 9, y + 4, 100 * dot.value)
        )  # fmt: skip
    said = "; ".join(
        f"{d.name}: {d.value:.1%}" + ("" if d.low is None or d.high is None else f" ({d.low:.1%} to {d.high:.1%})")
        for d in values
    )
    return _framed(parts, len(values), title, said, key)


def _left(names: Sequence[str]) -> float:
    return min(WIDTH * 0.4, 22 + GLYPH * max(map(len, names), default=0))


def _name(name: str, left: float, y: float) -> Markup:
    longest = int((left - 12) / GLYPH)
    short = name if len(name) <= longest else f"…{name[-(longest - 1) :]}"
    return Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
        left - 10, y + ROW / 2 + 4, short
    )


def _axis(x: Scale, rows: int) -> Markup:
    bottom = TOP + rows * ROW
    return Markup("").join(
        Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
               '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f}{}</text>').format(
            x(mark), x(mark), TOP, bottom, x(mark), bottom + 15, 100 * mark, " %" if mark == 1 else "")
        for mark in ticks(0.0, 1.0)
    )  # fmt: skip


def _framed(parts: Sequence[Markup], rows: int, title: str, said: str, key: str) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" role="img" aria-labelledby="{k}-t {k}-d">'
        '<title id="{k}-t">{t}</title><desc id="{k}-d">{d}</desc>{body}</svg>'
    ).format(w=WIDTH, h=TOP + rows * ROW + BOTTOM, k=key, t=title, d=said, body=Markup("").join(parts))
