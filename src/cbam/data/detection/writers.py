"""Write images with boxes and masks as COCO, VOC and YOLO folders."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from cbam.data.detection.boxes import to_centre
from cbam.data.detection.masks import encode_mask
from cbam.files import write_atomically


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8, a mask (H, W) of the visible part of each object, and their classes, from 0."""

    pixels: NDArray[np.uint8]
    masks: tuple[NDArray[np.bool_], ...]
    labels: tuple[int, ...]

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The box around each mask: x1, y1, x2, y2, the first pixel from 0 to 1."""
        return [_box(mask) for mask in self.masks]


class Writer(Protocol):
    """Writes one format."""

    folder: Path

    def add(self, side: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write image `index` of "train" or "val"; `jpeg` holds its pixels."""

    def finish(self) -> None:
        """Write what needs all images."""


class CocoWriter:
    """Writes annotations/instances_train2017.json, train2017/ and the same for val; masks as run-length codes.

    The category ids have gaps, as COCO's have.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]):
        self.folder = folder
        step = max(1, 89 // max(1, len(classes) - 1))
        self.categories = [
            {"id": 1 + step * label, "name": name, "supercategory": "garment"}
            for label, name in enumerate(classes)
        ]
        self.content: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(
            lambda: {"images": [], "annotations": []}
        )

    def add(self, side: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write an image and keep its annotations."""
        content = self.content[side]
        name = f"{index + 1:012d}.jpg"
        _write(self.folder / f"{side}2017" / name, jpeg)
        height, width = scene.pixels.shape[:2]
        content["images"].append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for mask, (x1, y1, x2, y2), label in zip(scene.masks, scene.boxes, scene.labels, strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index + 1,
                    "category_id": self.categories[label]["id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )

    def finish(self) -> None:
        """Write the annotation files."""
        for side, content in self.content.items():
            path = self.folder / "annotations" / f"instances_{side}2017.json"
            write_atomically(path, json.dumps({**content, "categories": self.categories}))


class VocWriter:
    """Writes VOC2007 with JPEGImages/, Annotations/ and ImageSets/Main/trainval.txt and test.txt."""

    def __init__(self, folder: Path, classes: tuple[str, ...]):
        self.folder = folder
        self.base = folder / "VOCdevkit" / "VOC2007"
        self.classes = classes
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, side: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write an image and its annotations."""
        name = f"{index + 1 + (500_000 if side == 'val' else 0):06d}"
        self.names["trainval" if side == "train" else "test"].append(name)
        _write(self.base / "JPEGImages" / f"{name}.jpg", jpeg)
        height, width = scene.pixels.shape[:2]
        objects = "".join(
            f"<object><name>{escape(self.classes[label])}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>\n"
            for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True)
        )
        text = (
            f"<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename>\n<size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size><segmented>0</segmented>\n{objects}</annotation>\n"
        )
        _write(self.base / "Annotations" / f"{name}.xml", text.encode())

    def finish(self) -> None:
        """Write the lists of images."""
        for part, names in self.names.items():
            _write(
                self.base / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{n}\n" for n in names).encode()
            )


class YoloWriter:
    """Writes data.yaml, images/train, labels/train and the same for val; an image without objects has no label file."""

    def __init__(self, folder: Path, classes: tuple[str, ...]):
        self.folder = folder
        self.classes = classes

    def add(self, side: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write an image and its labels."""
        name = f"{index + 1:06d}"
        _write(self.folder / "images" / side / f"{name}.jpg", jpeg)
        height, width = scene.pixels.shape[:2]
        lines = [
            f"{label} " + " ".join(f"{value:.8f}" for value in to_centre(box, width, height))
            for box, label in zip(scene.boxes, scene.labels, strict=True)
        ]
        if lines:
            _write(
                self.folder / "labels" / side / f"{name}.txt", "".join(f"{line}\n" for line in lines).encode()
            )

    def finish(self) -> None:
        """Write data.yaml."""
        names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(self.classes))
        write_atomically(self.folder / "data.yaml", f"train: images/train\nval: images/val\nnames:\n{names}")


WRITERS: dict[str, Callable[[Path, tuple[str, ...]], Writer]] = {
    "coco": CocoWriter,
    "voc": VocWriter,
    "yolo": YoloWriter,
}


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
