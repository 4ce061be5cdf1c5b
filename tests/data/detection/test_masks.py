import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as oracle

from cbam.data.detection.masks import checked_polygons, decode, encode_mask, run_lengths
from cbam.errors import CBAMError

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random(drawn[:2]) < drawn[3]
)


@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(mask):
    code = encode_mask(mask)
    compressed = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert oracle.frPyObjects(code, *mask.shape) == compressed
    assert (decode(code, mask.shape) == mask).all()
    assert (decode(compressed, mask.shape) == mask).all()
    assert (decode({**compressed, "counts": compressed["counts"].decode()}, mask.shape) == mask).all()


@given(st.lists(st.tuples(st.floats(-20, 80), st.floats(-20, 60)), min_size=3, max_size=9))
def test_polygons_are_filled_as_by_pycocotools(points):
    flat = [value for point in points for value in point]
    (kept,) = checked_polygons([flat], (40, 60))
    expected = oracle.decode(oracle.merge(oracle.frPyObjects([flat], 40, 60)))
    assert (decode((kept,), (40, 60)) == expected).all()


def test_no_outline_gives_an_empty_mask():
    assert decode(None, (3, 4)).tolist() == [[0] * 4] * 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [2, 3], "counts": [7]}, "do not fill 3 x 2"),
        ({"size": [2, 3], "counts": [-1, 7]}, "whole numbers from 0"),
        ({"size": [2, 3], "counts": [2**70]}, "whole numbers from 0"),
        ({"size": [3, 2], "counts": [6]}, r"needs 'size' \[2, 3\]"),
        ({"size": True, "counts": [6]}, r"needs 'size'"),
        ({"size": None, "counts": [6]}, r"needs 'size'"),
        ({"size": [2, 3], "counts": 6}, "are a text, or a list"),
        ({"size": [2, 3], "counts": "\x01"}, "none of theirs"),
        ({"size": [2, 3], "counts": "é"}, "do not fill|none of theirs"),
        ({"size": [2, 3], "counts": "ooooooooooooooo"}, "none of theirs"),
        ({"size": [2, 3], "counts": "o"}, "end in the middle"),
        ("6", "needs 'size'"),
    ],
)
def test_damaged_run_lengths_are_refused(code, words):
    with pytest.raises(CBAMError, match=words):
        run_lengths(code, (2, 3))


@given(st.text(alphabet=[chr(code) for code in range(40, 120)]) | st.binary())
def test_any_text_is_decoded_or_refused(text):
    try:
        lengths = run_lengths({"size": [5, 7], "counts": text}, (5, 7))
    except CBAMError:
        return
    assert lengths.sum() == 35


@pytest.mark.parametrize(
    "polygon",
    [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("nan")], ["a"] * 6, [[1, 2]] * 3, 5, None],
)
def test_damaged_polygons_are_refused(polygon):
    with pytest.raises(CBAMError, match="at least three points"):
        checked_polygons([polygon], (40, 60))


def test_points_far_outside_are_brought_near():
    (points,) = checked_polygons([[1e30, 5, -1e30, 5, 10, 1e12]], (40, 60))
    assert points.tolist() == [120, 5, -60, 5, 10, 120]
