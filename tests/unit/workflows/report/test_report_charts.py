"""Charts from good numbers, from bad ones, and from none."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workflows.report.made_run import one
from workflows.report import bars
from workflows.report.charts import HEIGHT, LABEL_HEIGHT, WIDTH, Chart, Line, apart, bins, draw, smooth, stack, thinned
from workflows.report.scales import span, ticks, written

VALUES = st.floats(-1e9, 1e9, allow_nan=False)


def line(*values, **more):
    return Line("a", tuple((float(i), value) for i, value in enumerate(values, start=1)), **more)


def chart(*lines, **more):
    return Chart("a title", "What it shows.", lines, **more)


def numbers(svg: str) -> list[float]:
    return [float(n) for d in re.findall(r' d="([^"]*)"', svg) for n in re.findall(r"-?\d+\.?\d*", d)]


def test_no_curve_no_chart():
    assert draw(chart(), "k") is None
    assert draw(chart(line(None, None)), "k") is None


def test_a_single_point_is_a_dot_inside_the_plot():
    drawn = draw(chart(line(0.5)), "k")
    assert "<path" not in drawn.svg
    dot = one(r'<circle class="dot c0" cx="([\d.]+)" cy="([\d.]+)"', drawn.svg)
    assert 0 < float(dot[1]) < WIDTH
    assert 0 < float(dot[2]) < HEIGHT


def test_a_missing_value_is_a_gap_and_not_a_zero():
    drawn = draw(chart(line(1.0, 1.0, None, 1.0, 1.0)), "k")
    path = one(r'<path class="line[^"]*" d="([^"]*)"', drawn.svg)[1]
    assert path.count("M") == 2
    assert drawn.hover["lines"][0]["y"] == [1.0, 1.0, None, 1.0, 1.0]


def test_a_chart_says_what_it_shows_to_those_who_cannot_see_it_and_escapes_it():
    hostile = Line("<b>&", ((1.0, 0.25), (2.0, 0.5)))
    drawn = draw(Chart("<i>", "<u>", (hostile, line(1.0, 2.0))), "k")
    root = ET.fromstring(drawn.svg)
    assert root.findtext("title") == "<i>"
    assert "<b>&: from 0.25 to 0.5" in str(root.findtext("desc"))


def test_stacked_areas_lie_on_each_other_and_share_their_gaps():
    assert stack([line(0.5, None, 0.25), line(0.5, 0.5, 0.5)]) == [[0.5, None, 0.25], [1.0, None, 0.75]]
    drawn = draw(chart(line(0.5, None, 0.25), line(0.5, 0.5, 0.5), stacked=True), "k")
    ET.fromstring(drawn.svg)


@given(st.lists(st.one_of(st.none(), VALUES), max_size=40), st.booleans())
def test_any_numbers_make_well_formed_pictures_within_their_frame(values, stacked):
    drawn = draw(chart(line(*values), stacked=stacked), "k")
    assert (drawn is None) == all(value is None for value in values)
    if drawn is not None:
        ET.fromstring(drawn.svg)
        assert all(-1 <= n <= WIDTH + 1 for n in numbers(drawn.svg))


@given(VALUES, VALUES)
def test_axes_end_on_ticks_and_hold_their_values(a, b):
    low, high = span(min(a, b), max(a, b))
    assert low <= min(a, b, 0.0) + 1e-8 * (high - low)
    assert high >= max(a, b, 0.0) - 1e-8 * (high - low)
    assert low < high
    assert 2 <= len(ticks(low, high)) <= 12


@given(st.lists(st.floats(0, 200), max_size=12))
def test_labels_keep_their_order_and_their_distance(places):
    moved = apart([[y, str(y), 0] for y in places], 10, 188)
    assert [label for _, label, _ in moved] == [str(y) for y in sorted(places)]
    assert all(b[0] - a[0] >= LABEL_HEIGHT - 1e-6 or a[0] == 10 for a, b in pairwise(moved))


def test_long_curves_are_thinned_and_their_gaps_stay():
    points = tuple((float(i), None if i >= 500 else 1.0) for i in range(1000))
    found = bins(points, 100)
    assert len(found) == 100
    assert found[0][1] == 1.0
    assert found[-1][1] is None
    assert len(thinned(line(*range(10_000))).points) <= 240


def test_smoothing_is_a_mean_of_neighbours_and_keeps_gaps():
    assert smooth([(1, 0.0), (2, 3.0), (3, None), (4, 5.0)], 3) == ((1, 1.5), (2, 1.5), (3, None), (4, 5.0))


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.25, 0.25, "0.25"),
        (0.0005, 0.0005, "0.0005"),
        (15_000.0, 5000.0, "15k"),
        (2.5e6, None, "2.5M"),
        (3.0, 1.0, "3"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, step, text):
    assert written(value, step) == text


def test_shares_fill_their_bar_and_dots_carry_their_interval():
    drawn = bars.stacked([bars.Bar("sft", (0.5, 0.25, 0.25, 0.0))], [(n, n) for n in "abcd"], "t", "k")
    wide = [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"', drawn)]
    assert math.isclose(sum(wide[:2]), 3 * wide[2], rel_tol=0.01)
    dots = bars.dots([bars.Dot("<rl>", 0.8, 0.7, 0.9), bars.Dot("sft", 0.4)], "t", "k")
    assert dots.count('class="interval') == 1
    assert "&lt;rl&gt;" in dots
    ET.fromstring(dots)
