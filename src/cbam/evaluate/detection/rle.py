"""Masks as COCO's compressed run-length encodings: the code comes with the evaluator."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cbam.errors import MissingExtra

try:
    from faster_coco_eval.core import mask as coco_masks
except ImportError:
    coco_masks = None


class Rle(TypedDict):
    """COCO's form of a mask: `size` is [height, width], `counts` the compressed lengths of the runs."""

    size: list[int]
    counts: bytes


def require_coco() -> None:
    """Raise the error that names the extra unless faster-coco-eval is installed."""
    if coco_masks is None:
        raise MissingExtra("COCO's evaluation", "detect", "faster-coco-eval")


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Encode one mask, bool (H, W).

    >>> found = encode(np.eye(3, dtype=bool))
    >>> found["size"], mask_areas([found])
    ([3, 3], [3.0])
    """
    require_coco()
    found = coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=[int(side) for side in found["size"]], counts=_bytes(found["counts"]))


def from_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """Encode COCO's `segmentation` of an object: polygons, or an encoding with plain or compressed counts."""
    require_coco()
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return Rle(size=[height, width], counts=_bytes(segmentation["counts"]))
    if isinstance(segmentation, dict):
        found = coco_masks.frPyObjects(segmentation, height, width)
    else:
        polygons = [np.asarray(polygon, dtype=np.float64).tolist() for polygon in segmentation]
        found = coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))
    return Rle(size=[height, width], counts=_bytes(found["counts"]))


def mask_iou(detected: list[Rle], true: list[Rle], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the IoU of each detected mask with each true one, (D, G); with a crowd, the share of the detected mask."""
    if not detected or not true:
        return np.zeros((len(detected), len(true)))
    return np.asarray(coco_masks.iou(detected, true, crowd.astype(int).tolist()))


def mask_areas(masks: list[Rle]) -> list[float]:
    """Return the number of pixels of each mask."""
    return [float(area) for area in coco_masks.area(masks)] if masks else []


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
