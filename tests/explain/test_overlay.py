from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cbam.errors import CBAMError
from cbam.explain.overlay import colour_stops, colours, enlarged, overlay


def test_cold_places_show_the_picture_and_hot_ones_the_colour():
    picture = Image.new("RGB", (168, 168), (200, 200, 200))
    heat = np.zeros((2, 2))
    heat[0, 0] = 1.0
    drawn = np.asarray(overlay(picture, heat)).astype(int)
    assert (drawn[-1, -1] == 200).all()
    rgba = colours(np.array(1.0))
    assert drawn[0, 0] == pytest.approx(rgba[3] * rgba[:3] * 255 + (1 - rgba[3]) * 200, abs=1)


def test_opacity_and_red_rise_with_the_value():
    opacity = colours(np.linspace(0, 1, 50))[:, 3]
    assert opacity[0] == 0
    assert (np.diff(opacity) > 0).all()
    assert opacity[-1] < 0.9  # the picture stays visible below


def test_values_outside_are_clipped():
    assert np.array_equal(colours(np.array([-3.0, 7.0])), colours(np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 8), 168), ((28, 28), 168), ((32, 32), 160), ((224, 224), 224)]
)
def test_small_pictures_grow_by_whole_factors(size, expected):
    assert enlarged(Image.new("L", size)).size == (expected, expected)


def test_enlarged_pixels_stay_sharp():
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    grown = np.asarray(enlarged(Image.fromarray(pixels)))
    assert np.array_equal(grown, np.kron(pixels, np.ones((6, 6), dtype=np.uint8)))


def test_the_map_lies_where_it_belongs():
    heat = np.zeros((4, 8))
    heat[0, 7] = 1.0  # top right
    drawn = np.asarray(overlay(Image.new("L", (200, 100)), heat)).astype(int).sum(2)
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert row < 25
    assert column > 175


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_picture_mode(mode):
    assert overlay(Image.new(mode, (30, 20)), np.ones((2, 2))).mode == "RGB"


@pytest.mark.parametrize("shape", [(4,), (1, 4, 4), (0, 3)])
def test_refuses_what_is_no_map(shape):
    with pytest.raises(CBAMError, match="shape"):
        overlay(Image.new("L", (8, 8)), np.zeros(shape))


def test_refuses_values_that_are_not_finite():
    with pytest.raises(CBAMError, match="2 values that are not finite"):
        overlay(Image.new("L", (8, 8)), np.array([[np.nan, 0.0], [np.inf, 1.0]]))


def test_the_colour_bar_has_the_colours_of_the_overlay():
    stops = colour_stops(5)
    assert [position for position, _ in stops] == [0, 0.25, 0.5, 0.75, 1]
    rgba = colours(np.array(0.5))
    assert stops[2][1] == f"rgba({', '.join(str(round(255 * part)) for part in rgba[:3])}, {rgba[3]:.2f})"
