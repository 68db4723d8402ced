import math

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.prompts import in_thousandths
from actors.agent.trajectory import ImageRef
from actors.search.crop import chosen, clamp, in_pixels, padded
from actors.search.seams import ScoredBox
from actors.search.settings import RegionSettings

sides = st.integers(1, 2000)
regions = st.builds(RegionSettings, padding=st.floats(0, 3), min_side=st.integers(1, 500), min_box=st.integers(1, 50))


@st.composite
def boxes_in_images(draw):
    width, height = draw(sides), draw(sides)
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))), width, height


@given(boxes_in_images(), regions)
def test_a_padded_box_lies_in_the_image_holds_the_box_and_is_as_large_as_it_can_be_asked(case, region):
    (x0, y0, x1, y1), width, height = case
    left, top, right, bottom = padded((x0, y0, x1, y1), width, height, region)
    assert 0 <= left <= x0 < x1 <= right <= width
    assert 0 <= top <= y0 < y1 <= bottom <= height
    assert right - left >= min(region.min_side, width)
    assert bottom - top >= min(region.min_side, height)


@given(boxes_in_images())
def test_without_padding_a_large_box_stays_as_it_is(case):
    box, width, height = case
    assert padded(box, width, height, RegionSettings(padding=0.0, min_side=1)) == box


@given(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4), sides, sides)
def test_a_clamped_box_is_inside_the_image_or_nothing(box, width, height):
    clamped = clamp(box, width, height)
    if clamped is None:
        return
    x0, y0, x1, y1 = clamped
    assert all(math.isfinite(v) for v in box)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


@given(st.tuples(*[st.integers(-50, 1100)] * 4), sides, sides)
def test_a_box_in_thousandths_becomes_a_box_of_at_least_one_pixel_or_is_refused(box, width, height):
    x0, y0, x1, y1 = box
    pixels = in_pixels(box, width, height)
    if not (0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000):
        assert pixels is None
    else:
        assert pixels is not None
        assert 0 <= pixels[0] < pixels[2] <= width
        assert 0 <= pixels[1] < pixels[3] <= height


@given(boxes_in_images())
def test_a_box_as_the_model_is_told_it_is_one_that_it_can_write_and_holds_what_was_cut_out(case):
    (x0, y0, x1, y1), width, height = case
    told = in_thousandths((x0, y0, x1, y1), ImageRef("a" * 64, width, height))
    read = in_pixels(told, width, height)
    assert read is not None
    assert read[0] <= x0 < x1 <= read[2]
    assert read[1] <= y0 < y1 <= read[3]
    assert max(x0 - read[0], read[2] - x1) <= 1 + width / 1000
    assert max(y0 - read[1], read[3] - y1) <= 1 + height / 1000


def test_the_whole_image_in_thousandths_is_the_whole_image():
    assert in_pixels((0, 0, 1000, 1000), 333, 77) == (0, 0, 333, 77)


def test_of_several_detections_the_best_score_wins_then_the_larger_then_the_upper():
    rules = RegionSettings()
    low = ScoredBox((0, 0, 90, 90), 0.5)
    high = ScoredBox((10, 10, 20, 20), 0.8)
    larger = ScoredBox((30, 30, 60, 60), 0.8)
    upper = ScoredBox((30, 5, 60, 35), 0.8)
    assert chosen([low, high], 100, 100, rules) == (10, 10, 20, 20)
    assert chosen([larger, high], 100, 100, rules) == (30, 30, 60, 60)
    assert chosen([larger, upper], 100, 100, rules) == (30, 5, 60, 35)
    assert chosen([upper, larger], 100, 100, rules) == (30, 5, 60, 35)


def test_detections_that_are_unsure_small_outside_or_not_numbers_do_not_count():
    bad = [
        ScoredBox((0, 0, 50, 50), 0.1),
        ScoredBox((0, 0, 3, 50), 0.9),
        ScoredBox((200, 200, 300, 300), 0.9),
        ScoredBox((0, 0, math.nan, 50), 0.9),
        ScoredBox((0, 0, 50, 50), math.nan),
    ]
    assert chosen(bad, 100, 100, RegionSettings()) is None
    assert chosen([], 100, 100, RegionSettings()) is None
