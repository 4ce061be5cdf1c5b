"""What is known of an image before it is opened: its file, its size and its annotated objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Polygons, each (2 N,) as x, y, x, y ..., or a run-length code {"size": [H, W], "counts": list or text}.
Segmentation = tuple[NDArray[np.float64], ...] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class DetectionRecord:
    """One image and its K objects; arrays, as a Python object for each of a million annotations takes gigabytes.

    Attributes:
        image_id: the set's own number of the image where it has one (COCO), otherwise counted from 1.
        path: the image's file.
        height: in pixels, of the image that the boxes are measured on.
        width: likewise.
        boxes: (K, 4) float64, x1, y1, x2, y2 in pixels; the first pixel spans 0 to 1.
        labels: (K,) int64, from 1 to the number of classes; 0 is the background.
        areas: (K,) float64 in square pixels, by which COCO calls objects small, medium or large.
        iscrowd: (K,) bool, COCO's regions of many objects, which are neither trained on nor counted as missed.
        difficult: (K,) bool, VOC's objects that are neither counted as found nor as missed.
        segmentations: K outlines, None for an object that has no more than a box.
        upright: whether the boxes are measured on the image as its EXIF data turn it (YOLO), or as it is stored.
    """

    image_id: int
    path: Path
    height: int
    width: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    segmentations: tuple[Segmentation | None, ...]
    upright: bool = False

    def __len__(self) -> int:
        """Return the number of objects K."""
        return len(self.labels)


@dataclass(frozen=True)
class Annotation:
    """One object while a set is read; the fields are those of `DetectionRecord`."""

    box: tuple[float, float, float, float]
    label: int
    area: float | None = None
    iscrowd: bool = False
    difficult: bool = False
    segmentation: Segmentation | None = None


def make_record(
    image_id: int,
    path: Path,
    size: tuple[int, int],
    annotations: Sequence[Annotation],
    *,
    upright: bool = False,
) -> DetectionRecord:
    """Make the record of an image of `size` (width, height); an area that is not given is the box's.

    >>> record = make_record(7, Path("a.jpg"), (64, 48), [Annotation((0, 0, 10, 5), label=2)])
    >>> record.height, record.width, record.boxes.tolist(), record.areas.tolist()
    (48, 64, [[0.0, 0.0, 10.0, 5.0]], [50.0])
    """
    boxes = np.array([a.box for a in annotations], dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    given = np.array([np.nan if a.area is None else a.area for a in annotations], dtype=np.float64)
    return DetectionRecord(
        image_id=image_id,
        path=path,
        height=size[1],
        width=size[0],
        boxes=boxes,
        labels=np.array([a.label for a in annotations], dtype=np.int64),
        areas=np.where(np.isnan(given), sides.prod(axis=1), given),
        iscrowd=np.array([a.iscrowd for a in annotations], dtype=np.bool_),
        difficult=np.array([a.difficult for a in annotations], dtype=np.bool_),
        segmentations=tuple(a.segmentation for a in annotations),
        upright=upright,
    )
