"""The true objects of images, as the evaluators compare them with detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cbam.errors import CBAMError
from cbam.evaluate.detection.rle import Rle, from_segmentation


class Record(Protocol):
    """What the evaluators read of an image and its K objects: a `cbam.data.detection.DetectionRecord`, say.

    Attributes:
        image_id: unique in the split.
        height, width: in pixels, of the image that the boxes are measured on.
        boxes: (K, 4), x1, y1, x2, y2 in pixels, edges between pixels.
        labels: (K,), 1..classes.
        areas: (K,) in square pixels, of the masks where there are some: they decide small, medium, large.
        iscrowd: (K,) bool, COCO's regions of many objects.
        difficult: (K,) bool, VOC's objects that do not count.
        segmentations: K outlines in COCO's forms, None for an object that has none.
    """

    @property
    def image_id(self) -> int: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def boxes(self) -> NDArray[np.float64]: ...  # noqa: D102
    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def areas(self) -> NDArray[np.float64]: ...  # noqa: D102
    @property
    def iscrowd(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def difficult(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def segmentations(self) -> Sequence[Any]: ...  # noqa: D102


def by_image(records: Iterable[Record], classes: int, masks: bool = False) -> dict[int, Record]:
    """Return the records by `image_id`, in ascending order.

    Args:
        records: of a split, one an image.
        classes: how many there are.
        masks: whether each object must have an outline.

    Raises:
        CBAMError: two images have one id, a label has no class, or an object has no outline.
    """
    found: dict[int, Record] = {}
    for record in records:
        where = f"image {record.image_id}"
        if record.image_id in found:
            raise CBAMError(f"image_id must be unique: {record.image_id} occurs twice in the records")
        require_labels(record.labels, classes, where)
        if masks and any(outline is None for outline in record.segmentations):
            raise CBAMError(f"{where} has an object without a mask: evaluate boxes only (masks=False)")
        found[record.image_id] = record
    return dict(sorted(found.items()))


def require_labels(labels: NDArray[Any], classes: int, where: str) -> None:
    """Raise an error unless all labels lie in 1..classes; `where` begins its message."""
    if labels.size and not 1 <= labels.min() <= labels.max() <= classes:
        raise CBAMError(
            f"{where}: labels must lie in 1..{classes}, where 0 is the background; given"
            f" {labels.min()}..{labels.max()}"
        )


def true_masks(record: Record) -> list[Rle]:
    """Return the masks of an image's objects, run-length encoded."""
    return [from_segmentation(outline, record.height, record.width) for outline in record.segmentations]
