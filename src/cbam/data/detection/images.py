"""The images of a detection set, decoded when they are asked for, as torchvision's transforms take them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from cbam.data.detection import masks
from cbam.data.detection.records import DetectionRecord
from cbam.data.pictures import DEFAULT_MAX_PIXELS, open_annotated

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self

Target = dict[str, Any]


class DetectionImages(Dataset[tuple[tv_tensors.Image, Target]]):
    """Images with the boxes of their objects, not augmented.

    Item `index` is an image (3, H, W) uint8 and a dict: "boxes" (K, 4) float32, x1, y1, x2, y2 in pixels; "labels" (K,)
    int64 from 1; "image_id" int; "iscrowd" and "difficult" (K,) bool; "area" (K,) float32; "masks" (K, H, W) uint8
    where the set has outlines. K may be 0.

    Args:
        records: one an image.
        with_masks: whether to decode the outlines.
        max_pixels: a larger image is refused.
    """

    def __init__(
        self,
        records: Sequence[DetectionRecord],
        *,
        with_masks: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ):
        self.records = list(records)
        self.with_masks = with_masks
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[tv_tensors.Image, Target]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        record = self.records[index]
        image = tv_tensors.Image(functional.pil_to_tensor(self.picture(index)))
        size = (record.height, record.width)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(record.boxes.astype(np.float32)), format="XYXY", canvas_size=size
            ),
            "labels": torch.from_numpy(record.labels.copy()),
            "image_id": record.image_id,
            "iscrowd": torch.from_numpy(record.iscrowd.copy()),
            "difficult": torch.from_numpy(record.difficult.copy()),
            "area": torch.from_numpy(record.areas.astype(np.float32)),
        }
        if self.with_masks:
            decoded = [masks.decode(outline, size) for outline in record.segmentations]
            stacked = np.stack(decoded) if decoded else np.zeros((0, *size), dtype=np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        return image, target

    def picture(self, index: int) -> Image:
        """Return image `index` in RGB, turned as it was when it was annotated."""
        record = self.records[index]
        return open_annotated(
            record.path, (record.width, record.height), upright=record.upright, max_pixels=self.max_pixels
        )

    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""
        view = copy.copy(self)
        view.records = [self.records[index] for index in indices]
        return view

    @property
    def objects(self) -> int:
        """Number of objects in all images."""
        return sum(len(record) for record in self.records)

    def digest(self) -> bytes:
        """Return a hash of the file names, sizes, boxes and labels, not of the pixels."""
        digest = hashlib.sha256()
        for record in self.records:
            head = f"{record.image_id}\0{record.path.name}\0{record.width}\0{record.height}\0{len(record)}\n"
            digest.update(head.encode("utf-8", "surrogateescape"))
            for array in (record.boxes, record.labels, record.areas, record.iscrowd, record.difficult):
                digest.update(array.tobytes())
        return digest.digest()
