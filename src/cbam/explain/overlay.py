"""Draw a map of values between 0 and 1 over an image."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbam.errors import CBAMError, nearest, unknown_name

# Perceptually uniform: no false edges as in jet or turbo, and readable for the colour-blind.
COLOUR_MAP = "inferno"
PAPER_COLOUR_MAP = "jet"
_USUAL = ("viridis", "magma", "plasma", "cividis", "turbo", PAPER_COLOUR_MAP)
_STRONGEST = 0.8
_PAPER_OPACITY = 0.5  # of the whole map, as in the paper's Figure 5
_SHOWN_SIDE = 168


def check_colour_map(name: str) -> None:
    """Refuse a name that matplotlib does not know.

    Raises:
        CBAMError: names the nearest one.

    >>> check_colour_map("inferno")
    """
    if name not in mpl.colormaps:
        raise unknown_name(
            "colour map", name, dict.fromkeys([COLOUR_MAP, *_USUAL, *nearest(name, mpl.colormaps)])
        )


def colours(values: NDArray[np.floating], name: str = COLOUR_MAP) -> NDArray[np.float64]:
    """Return RGBA for values in 0..1: more opaque for higher values, so that low values show the image.

    Args:
        values: any shape; clipped to 0..1.
        name: matplotlib's name of the colours; "jet" is equally opaque everywhere, as in the paper.

    Returns:
        The same shape with a last axis of 4; every value is between 0 and 1.

    >>> colours(np.array([0.0, 1.0]))[:, 3].tolist()
    [0.0, 0.8]
    """
    clipped = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    rgba = np.array(mpl.colormaps[name](clipped))
    rgba[..., 3] = _PAPER_OPACITY if name == PAPER_COLOUR_MAP else _STRONGEST * clipped
    return rgba


def colour_stops(count: int = 9, name: str = COLOUR_MAP, *, opaque: bool = False) -> list[tuple[float, str]]:
    """Return (position, CSS colour) pairs for a colour bar that matches `overlay`, or `painted` if opaque.

    >>> colour_stops(2)[0]
    (0.0, 'rgba(0, 0, 4, 0.00)')
    """
    positions = np.linspace(0.0, 1.0, count)
    return [
        (
            float(position),
            f"rgba({', '.join(str(round(255 * part)) for part in rgba[:3])}, {1 if opaque else rgba[3]:.2f})",
        )
        for position, rgba in zip(positions, colours(positions, name), strict=True)
    ]


def painted(values: NDArray[np.floating], size: tuple[int, int], name: str = COLOUR_MAP) -> Image.Image:
    """Paint a map of values in 0..1 alone, enlarged to `size` (width, height) with its locations as sharp squares.

    >>> painted(np.eye(7), (224, 224)).size
    (224, 224)
    """
    rgb = colours(values, name)[..., :3] * 255
    return Image.fromarray(np.round(rgb).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def overlay(picture: Image.Image, heat: NDArray[np.floating], name: str = COLOUR_MAP) -> Image.Image:
    """Draw a coarse map over a picture.

    The map is enlarged bilinearly. A small picture is enlarged first, by an integer factor without interpolation,
    so that its pixels stay those that the network saw.

    Args:
        picture: any mode that Pillow converts to RGB; size (W, H) in pixels.
        heat: shape (h, w), finite; clipped to 0..1.
        name: of the colours, see `colours`.

    Returns:
        An RGB picture, an integer multiple of `picture`'s size.

    Raises:
        CBAMError: the map has the wrong rank, is empty, or contains NaN or infinity.

    >>> overlay(Image.new("L", (28, 28)), np.eye(7)).size
    (168, 168)
    """
    heat = np.asarray(heat, dtype=np.float32)
    if heat.ndim != 2 or heat.size == 0:
        raise CBAMError(f"a map must have the shape (height, width); got {heat.shape}")
    if not np.isfinite(heat).all():
        raise CBAMError(
            f"the map contains {int((~np.isfinite(heat)).sum())} values that are not finite (NaN or infinity)"
        )
    base = enlarged(picture.convert("RGB"))
    smooth = Image.fromarray(np.clip(heat, 0.0, 1.0)).resize(base.size, Image.Resampling.BILINEAR)
    rgba = colours(np.asarray(smooth), name)
    alpha = rgba[..., 3:]
    mixed = alpha * rgba[..., :3] * 255 + (1 - alpha) * np.asarray(base, dtype=np.float64)
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a picture smaller than 84 pixels by an integer factor to about 168, keeping pixels sharp squares.

    >>> enlarged(Image.new("L", (8, 8))).size, enlarged(Image.new("L", (224, 224))).size
    ((168, 168), (224, 224))
    """
    factor = max(1, math.floor(_SHOWN_SIDE / max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture if factor == 1 else picture.resize(size, Image.Resampling.NEAREST)
