"""Outlines of objects as masks: polygons and run-length codes, checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam.data.detection.records import Segmentation
from cbam.errors import CBAMError, MissingExtra


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's run-length code of a mask (H, W): lengths down the columns, zeros first.

    >>> encode_mask(np.array([[False, True], [True, True]]))
    {'size': [2, 2], 'counts': [1, 3]}
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}


def run_lengths(code: Any, size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the lengths in a run-length code, zeros first, after checking that they fill an image of `size` (H, W).

    Args:
        code: {"size": [H, W], "counts": a list of lengths, or COCO's text of them}.
        size: (H, W) of the image.

    Raises:
        CBAMError: it is no such code, or its lengths are those of another image.
    """
    if not isinstance(code, dict) or code.get("size") not in (list(size), tuple(size)):
        raise CBAMError(f"a run-length code needs 'size' {list(size)} and 'counts'")
    counts = code.get("counts")
    if isinstance(counts, (str, bytes)):
        lengths = _from_text(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**40 for count in counts):
        lengths = np.array(counts, dtype=np.int64)
    else:
        raise CBAMError("the 'counts' of a run-length code are a text, or a list of whole numbers from 0")
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise CBAMError(f"the lengths of a run-length code do not fill {size[1]} x {size[0]} pixels")
    return lengths


def _from_text(text: bytes) -> NDArray[np.int64]:
    # Five bits a character from "0", lowest first; 32 says that more follow, 16 in the last that it is negative.
    # From the third length on the difference to the one before the last is stored.
    lengths: list[int] = []
    value = shift = 0
    for byte in text:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 40:
            raise CBAMError(
                "the 'counts' of a run-length code hold a character or a number that is none of theirs"
            )
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise CBAMError("the 'counts' of a run-length code end in the middle of a number")
    return np.array(lengths, dtype=np.int64)


def checked_polygons(polygons: Any, size: tuple[int, int]) -> tuple[NDArray[np.float64], ...]:
    """Return polygons as arrays of x, y, x, y ..., brought near an image of `size` (H, W) if they go far out of it.

    Raises:
        CBAMError: they are no lists of at least three points each, or not finite.
    """
    most = max(size)
    checked = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.empty(0)
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise CBAMError("a polygon is a list of x, y, x, y ..., finite, at least three points")
        if points.min() < -most or points.max() > 2 * most:  # far outside only costs time
            points = points.clip(-most, 2 * most)
        checked.append(points)
    return tuple(checked)


def decode(segmentation: Segmentation | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask (H, W) of an outline, 0 or 1; none gives an empty one. Polygons are filled as COCO's tools do.

    Raises:
        CBAMError: the outline is not one of an image of this `size`.
        MissingExtra: polygons need the package faster-coco-eval.

    >>> decode({"size": [2, 3], "counts": [1, 3, 2]}, (2, 3)).tolist()
    [[0, 1, 0], [1, 1, 0]]
    """
    height, width = size
    if segmentation is None:
        return np.zeros(size, dtype=np.uint8)
    if isinstance(segmentation, dict):
        lengths = run_lengths(segmentation, size)
        flat = np.repeat(np.arange(len(lengths), dtype=np.int64) % 2, lengths).astype(np.uint8)
        return flat.reshape((height, width), order="F")
    return _filled(segmentation, height, width)


def _filled(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> NDArray[np.uint8]:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise MissingExtra("masks from polygons", "detect", "faster-coco-eval") from error

    codes = mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return mask.decode(mask.merge(codes))
