"""Boxes in the forms of COCO, VOC and YOLO, and the one form used here: x1, y1, x2, y2, the first pixel 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cbam.data.detection.problems import Problems

Box = tuple[float, float, float, float]
TOLERANCE = 1.0  # pixels; COCO's own boxes pass the edge by rounding, and its evaluator leaves them


def from_xywh(box: Sequence[float]) -> Box:
    """Convert COCO's left, top, width, height.

    >>> from_xywh([10, 20, 5, 6])
    (10, 20, 15, 26)
    """
    x, y, width, height = box
    return x, y, x + width, y + height


def from_inclusive(box: Sequence[float]) -> Box:
    """Convert VOC's first and last pixel, counted from 1.

    >>> from_inclusive([1, 1, 500, 375])
    (0, 0, 500, 375)
    """
    x1, y1, x2, y2 = box
    return x1 - 1, y1 - 1, x2, y2


def from_centre(box: Sequence[float], width: int, height: int) -> Box:
    """Convert YOLO's centre and size, given as shares of an image of `width` x `height` pixels.

    >>> from_centre([0.5, 0.5, 1.0, 0.5], 64, 48)
    (0.0, 12.0, 64.0, 36.0)
    """
    x, y, w, h = box
    return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height


def to_centre(box: Sequence[float], width: int, height: int) -> Box:
    """Convert to YOLO's centre and size.

    >>> to_centre((0, 12, 64, 36), 64, 48)
    (0.5, 0.5, 1.0, 0.5)
    """
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height


def clip(box: Sequence[float], width: int, height: int) -> Box:
    """Return the part of a box inside an image.

    >>> clip((-3, 5, 70, 20), 64, 48)
    (0, 5, 64, 20)
    """
    x1, y1, x2, y2 = box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def usable_box(box: Box, size: tuple[int, int], problems: Problems, where: str) -> Box | None:
    """Return the box to use for a stated one, None if there is none, and count what is wrong with it.

    Args:
        box: x1, y1, x2, y2 in pixels.
        size: (width, height) of the image.
        problems: takes what is wrong.
        where: names the annotation.
    """
    if not all(math.isfinite(value) for value in box):
        problems.error("boxes with numbers that are not finite", f"{where}: {list(box)}")
        return None
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        problems.warning("boxes without area", "left out", f"{where}: {x2 - x1:g} x {y2 - y1:g}")
        return None
    inside = clip(box, *size)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        problems.error("boxes outside the image", f"{where}: {_short(box)} in {size[0]} x {size[1]}")
        return None
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > TOLERANCE:
        problems.warning(
            "boxes partly outside the image", "clipped", f"{where}: {_short(box)} in {size[0]} x {size[1]}"
        )
        return inside
    return box


def _short(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
