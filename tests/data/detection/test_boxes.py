import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbam.data.detection.boxes import clip, from_centre, from_inclusive, from_xywh, to_centre, usable_box
from cbam.data.detection.problems import Problems

SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
NUMBERS = st.floats(-1e4, 1e4)
BOXES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@given(BOXES, SIZES)
def test_centre_and_back_is_the_same_box(box, size):
    assert from_centre(to_centre(box, *size), *size) == pytest.approx(box, abs=1e-6)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300), st.integers(1, 300))
def test_a_voc_box_has_the_pixels_that_it_names(x, y, width, height):
    x1, y1, x2, y2 = from_inclusive([x, y, x + width - 1, y + height - 1])
    assert (x2 - x1, y2 - y1) == (width, height)
    assert (x1, y1) == (x - 1, y - 1)


@given(BOXES)
def test_a_coco_box_keeps_its_size(box):
    x1, y1, x2, y2 = from_xywh(box)
    assert (x1, y1) == box[:2]
    assert (x2 - x1, y2 - y1) == pytest.approx(box[2:], abs=1e-6)


@given(BOXES, SIZES)
def test_a_clipped_box_lies_inside_and_clipping_again_changes_nothing(box, size):
    inside = clip(box, *size)
    assert 0 <= inside[0] <= size[0]
    assert 0 <= inside[1] <= size[1]
    assert 0 <= inside[2] <= size[0]
    assert 0 <= inside[3] <= size[1]
    assert clip(inside, *size) == inside


@given(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4), SIZES)
def test_every_box_is_used_or_counted(box, size):
    problems = Problems()
    used = usable_box(box, size, problems, "x")
    if used is None:
        assert len([*problems.errors, *problems.warnings]) == 1
        return
    assert not problems.errors
    assert all(math.isfinite(value) for value in used)
    assert used[2] > used[0]
    assert used[3] > used[1]
    assert max(abs(a - b) for a, b in zip(used, clip(used, *size), strict=True)) <= 1


@pytest.mark.parametrize(
    ("box", "expected", "words"),
    [
        ((0, 0, 60.4, 40), (0, 0, 60.4, 40), []),  # as COCO's own, left as it is
        (
            (-5, 0, 10, 10),
            (0, 0, 10, 10),
            ["1 boxes partly outside the image (clipped): a: (-5, 0, 10, 10) in 60 x 40"],
        ),
        ((5, 5, 5, 9), None, ["1 boxes without area (left out): a: 0 x 4"]),
        ((9, 5, 5, 9), None, ["1 boxes without area (left out): a: -4 x 4"]),
        ((61, 5, 70, 9), None, ["1 boxes outside the image (left out): a: (61, 5, 70, 9) in 60 x 40"]),
        (
            (math.nan, 0, 1, 1),
            None,
            ["1 boxes with numbers that are not finite (left out): a: [nan, 0, 1, 1]"],
        ),
    ],
)
def test_what_becomes_of_a_box(box, expected, words):
    problems = Problems()
    assert usable_box(box, (60, 40), problems, "a") == expected
    assert [str(fault) for fault in (*problems.errors, *problems.warnings)] == words
