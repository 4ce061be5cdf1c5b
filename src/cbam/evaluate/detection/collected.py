"""Detections of many images: kept compactly, gathered over processes, each image once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, distributed

from cbam.data.scan import some
from cbam.errors import CBAMError
from cbam.evaluate.detection.ground_truth import Record, by_image, require_labels
from cbam.evaluate.detection.rle import Rle, encode


@dataclass(frozen=True)
class Found:
    """The detections of one image, in the order of the detector: 24 bytes each without masks."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    masks: tuple[bytes, ...] = ()


class DetectionEvaluator:
    """What the evaluators share: true objects, and the detections given so far.

    Args:
        records: the images of a split with their true objects.
        classes: the names of the labels 1, 2, ...
        masks: whether detections carry masks to be kept.
    """

    def __init__(self, records: Sequence[Record], classes: Sequence[str], *, masks: bool = False):
        self.classes = tuple(classes)
        self.masks = masks
        self.truth = by_image(records, len(self.classes), masks)
        self._found: dict[int, Found] = {}

    def update(self, image_id: int, detections: Mapping[str, Tensor]) -> None:
        """Take the detections of one image; also where there are none: then the tensors are empty.

        An image that was given before is passed over: samplers repeat images to fill the last batch.

        Args:
            image_id: of the image in the records.
            detections: a detector's output for the image: "boxes" (K, 4) x1, y1, x2, y2 in pixels of the image as
                stored, "labels" (K,), "scores" (K,), and "masks" (K, 1, H, W) in 0..1 if the evaluator takes masks.
                They may be on any device; masks are encoded at once, at the threshold 0.5.

        Raises:
            CBAMError: the image is unknown, shapes do not fit, a score is not finite, or a label has no class.
        """
        image_id = int(image_id)
        truth = self.truth.get(image_id)
        if truth is None:
            raise CBAMError(
                f"no image has the id {image_id}; the {len(self.truth):,} of this split have:"
                f" {some(map(str, self.truth))}"
            )
        if image_id not in self._found:
            self._found[image_id] = self._compact(image_id, truth, detections)

    def gather(self) -> None:
        """Give each process the detections of all; nothing to do on one. An image given on several counts once."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, self._found)
        self._found = {}
        for part in parts:
            for image_id, found in part.items():
                self._found.setdefault(image_id, found)

    def results(self, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return all detections in COCO's results form: dicts of image_id, category_id, bbox, score, segmentation.

        Args:
            category_ids: of the classes, in order; default 1, 2, ...
        """
        ids = category_ids or range(1, len(self.classes) + 1)
        return [
            {"image_id": image_id, **entry}
            for image_id in sorted(self._found)
            for entry in self._entries(image_id, ids)
        ]

    def _entries(self, image_id: int, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        found, truth = self._found[image_id], self.truth[image_id]
        boxes = found.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        for index, (box, score, label) in enumerate(rows):
            entry: dict[str, Any] = {"category_id": category_ids[label - 1], "bbox": box, "score": score}
            if self.masks:
                counts = found.masks[index].decode("ascii")
                entry["segmentation"] = {"size": [truth.height, truth.width], "counts": counts}
            yield entry

    def _complete(self) -> dict[int, Found]:
        missing = [image_id for image_id in self.truth if image_id not in self._found]
        if missing:
            raise CBAMError(
                f"{len(missing):,} of {len(self.truth):,} images have not been given: {some(map(str, missing))}."
                " Call update() for each image, with empty tensors where nothing was found, and gather() if several"
                " processes share them."
            )
        return self._found

    def _compact(self, image_id: int, truth: Record, detections: Mapping[str, Tensor]) -> Found:
        expected = ("boxes", "labels", "scores", *(["masks"] if self.masks else []))
        if missing := [name for name in expected if name not in detections]:
            raise CBAMError(
                f"detections need {', '.join(expected)}; {', '.join(missing)} missing in {', '.join(detections)}"
            )
        boxes, labels, scores = (
            detections[name].detach().cpu().numpy() for name in ("boxes", "labels", "scores")
        )
        count = len(scores)
        if boxes.shape != (count, 4) or labels.shape != (count,) or scores.shape != (count,):
            shapes = f"boxes {boxes.shape}, labels {labels.shape}, scores {scores.shape}"
            raise CBAMError(
                f"image {image_id}: expected boxes (K, 4), labels (K,), scores (K,); given {shapes}"
            )
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise CBAMError(f"image {image_id}: a score or box is NaN or infinite")
        require_labels(labels, len(self.classes), f"image {image_id}")
        masks = _encoded(image_id, truth, detections["masks"], count) if self.masks else ()
        return Found(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32), masks)


def _encoded(image_id: int, truth: Record, masks: Tensor, count: int) -> tuple[bytes, ...]:
    if masks.shape != (count, 1, truth.height, truth.width):
        raise CBAMError(
            f"image {image_id}: expected masks ({count}, 1, {truth.height}, {truth.width}), the size of the image as"
            f" stored; given {tuple(masks.shape)}"
        )
    return tuple(encode(mask[0].gt(0.5).cpu().numpy())["counts"] for mask in masks)


def rles(found: Found, truth: Record, chosen: Iterable[int]) -> list[Rle]:
    """Return the encodings of the chosen detections of an image."""
    return [Rle(size=[truth.height, truth.width], counts=found.masks[index]) for index in chosen]
