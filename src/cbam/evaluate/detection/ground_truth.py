"""The true objects of an image, as the evaluators compare them with detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cbam.errors import CBAMError
from cbam.evaluate.detection.rle import Rle, from_segmentation


class Annotation(Protocol):
    """One true object: what the evaluators read of it."""

    box: Sequence[float]  # x1, y1, x2, y2 in pixels of the image as stored, edges between pixels
    label: int  # 1..classes
    area: float  # of the mask where there is one: it decides small, medium, large
    iscrowd: bool
    difficult: bool
    segmentation: Any  # COCO's polygons or RLE; None without masks


class Record(Protocol):
    """What a detection set knows of an image without opening it."""

    image_id: int
    height: int
    width: int
    annotations: Sequence[Annotation]


@dataclass(frozen=True)
class Truth:
    """The K true objects of one image, in the order of the set.

    Attributes:
        height, width: of the image as stored, in pixels.
        boxes: float64 (K, 4), x1, y1, x2, y2.
        labels: int64 (K,), 1..classes.
        areas: float64 (K,), in square pixels.
        crowd: bool (K,): COCO's regions of many objects.
        difficult: bool (K,): VOC's objects that do not count.
        masks: K run-length encodings, or empty without masks.
    """

    height: int
    width: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    masks: tuple[Rle, ...] = ()


def read_truth(records: Iterable[Record], classes: Sequence[str], masks: bool = False) -> dict[int, Truth]:
    """Return the true objects of each image by `image_id`, in ascending order.

    Args:
        records: of a split, one an image.
        classes: the names of the labels 1, 2, ...
        masks: whether to read the masks too.

    Raises:
        CBAMError: two images have one id, a label has no class, or an object has no mask where masks are asked for.
    """
    found: dict[int, Truth] = {}
    for record in records:
        if record.image_id in found:
            raise CBAMError(f"image_id must be unique: {record.image_id} occurs twice in the records")
        found[record.image_id] = _truth(record, len(classes), masks)
    return dict(sorted(found.items()))


def _truth(record: Record, classes: int, masks: bool) -> Truth:
    objects = record.annotations
    labels = np.array([item.label for item in objects], dtype=np.int64)
    if labels.size and not 1 <= labels.min() <= labels.max() <= classes:
        raise CBAMError(
            f"image {record.image_id}: labels must lie in 1..{classes} (0 is the background);"
            f" given {labels.min()}..{labels.max()}"
        )
    size = (record.height, record.width)
    if masks and any(item.segmentation is None for item in objects):
        raise CBAMError(
            f"image {record.image_id} has an object without a mask: evaluate boxes only (masks=False)"
        )
    return Truth(
        *size,
        np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
        labels,
        np.array([item.area for item in objects], dtype=np.float64),
        np.array([item.iscrowd for item in objects], dtype=bool),
        np.array([item.difficult for item in objects], dtype=bool),
        tuple(from_segmentation(item.segmentation, *size) for item in objects) if masks else (),
    )
