"""Draw a map of values between 0 and 1 over an image."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cbam.errors import CBAMError

# Perceptually uniform: no false edges as in jet or turbo, and readable for the colour-blind.
COLOUR_MAP = "inferno"
_STRONGEST = 0.8
_SHOWN_SIDE = 168


def colours(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return RGBA for values in 0..1: inferno, more opaque for higher values, so that low values show the image.

    Args:
        values: any shape; clipped to 0..1.

    Returns:
        The same shape with a last axis of 4; every value is between 0 and 1.

    >>> colours(np.array([0.0, 1.0]))[:, 3].tolist()
    [0.0, 0.8]
    """
    clipped = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    rgba = np.array(mpl.colormaps[COLOUR_MAP](clipped))
    rgba[..., 3] = _STRONGEST * clipped
    return rgba


def colour_stops(count: int = 9) -> list[tuple[float, str]]:
    """Return (position, CSS colour) pairs for a colour bar that matches `overlay`.

    >>> colour_stops(2)[0]
    (0.0, 'rgba(0, 0, 4, 0.00)')
    """
    positions = np.linspace(0.0, 1.0, count)
    return [
        (float(position), f"rgba({', '.join(str(round(255 * part)) for part in rgba[:3])}, {rgba[3]:.2f})")
        for position, rgba in zip(positions, colours(positions), strict=True)
    ]


def overlay(picture: Image.Image, heat: NDArray[np.floating]) -> Image.Image:
    """Draw a coarse map over a picture.

    The map is enlarged bilinearly. A small picture is enlarged first, by an integer factor without interpolation,
    so that its pixels stay those that the network saw.

    Args:
        picture: any mode that Pillow converts to RGB; size (W, H) in pixels.
        heat: shape (h, w), finite; clipped to 0..1.

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
    rgba = colours(np.asarray(smooth))
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
