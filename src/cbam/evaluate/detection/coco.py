"""COCO's evaluation of boxes and masks: its twelve figures, each class, precision over recall."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam.errors import CBAMError
from cbam.evaluate.detection.collected import DetectionEvaluator, Found, rles
from cbam.evaluate.detection.ground_truth import Record, true_masks
from cbam.evaluate.detection.matching import Matches, match_coco
from cbam.evaluate.detection.rle import Rle, mask_areas, require_coco

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_SIZES = ("small", "medium", "large")  # below 32^2, to 96^2, above, in square pixels
_CURVES = {"0.50": 0, "0.75": 5}  # IoU -> its index in IOUS


class CocoEvaluator(DetectionEvaluator):
    """Mean average precision and recall as COCO defines them, computed by faster-coco-eval.

    The true objects come from the records of a set, not from a file. Until `compute`, nothing is kept of an image but
    its detections: boxes as arrays, masks run-length encoded. Masks are sorted into small, medium and large by their
    own area, as in pycocotools where results hold no boxes. An undefined figure is None, where pycocotools has -1:
    that of a size without objects.

    Args:
        records: the images of a split with their true objects.
        classes: the names of the labels 1, 2, ...
        masks: whether to evaluate masks beside boxes.
        max_detections: three ascending limits of detections an image and class. AP uses the last, AR each.

    Raises:
        MissingExtra: faster-coco-eval is not installed.
        CBAMError: the limits are not three ascending numbers, or the records do not fit the classes.

    >>> import torch
    >>> from cbam.data.detection.records import Annotation, make_record
    >>> record = make_record(7, "cat.jpg", (100, 80), [Annotation((10, 10, 60, 50), label=1)])
    >>> evaluator = CocoEvaluator([record], ["cat"])
    >>> found = {"boxes": torch.tensor([[10.0, 10, 60, 50]]), "labels": torch.ones(1).long(), "scores": torch.ones(1)}
    >>> evaluator.update(7, found)
    >>> evaluator.gather()
    >>> round(evaluator.compute()["boxes"]["figures"]["AP"], 3)
    1.0
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: Sequence[str],
        *,
        masks: bool = False,
        max_detections: tuple[int, int, int] = (1, 10, 100),
    ):
        require_coco()
        if len(max_detections) != 3 or not 0 < max_detections[0] < max_detections[1] < max_detections[2]:
            raise CBAMError(
                f"max_detections takes three ascending limits such as (1, 10, 100); given {max_detections}"
            )
        super().__init__(records, classes, masks=masks)
        self.max_detections = max_detections

    def compute(self) -> dict[str, Any]:
        """Evaluate all images.

        Returns:
            "boxes", and "masks" if the evaluator takes masks, each with

            - "figures": AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100 (by `max_detections`),
              AR_small, AR_medium, AR_large; fractions.
            - "per_class": for each class a dict of class, objects (crowds not counted), AP, AP50, AP75, AR.
            - "curves": recall (101 values), and for the IoUs "0.50" and "0.75" the interpolated precision there: "mean"
              over the classes with objects, and "classes", a list for each class (None without objects).

        Raises:
            CBAMError: some image of the split has not been given to `update`.
        """
        found = self._complete()
        kinds = ("boxes", "masks") if self.masks else ("boxes",)
        return {kind: self._scores(_evaluated(self, found, kind)) for kind in kinds}

    def matches(self, masks: bool = False) -> Matches:
        """Return what each detection was matched with, for `bootstrap_ap`."""
        found = self._complete()
        return match_coco(self.truth, found, len(self.classes), IOUS, self.max_detections[2], masks=masks)

    def _scores(self, evaluated: dict[str, Any]) -> dict[str, Any]:
        precision, recall = evaluated["precision"], evaluated["recall"]  # (T, R, K, A, M), (T, K, A, M)
        figures = {
            "AP": _mean(precision[..., 0, 2]),
            "AP50": _mean(precision[0, ..., 0, 2]),
            "AP75": _mean(precision[5, ..., 0, 2]),
            **{f"AP_{size}": _mean(precision[..., 1 + index, 2]) for index, size in enumerate(_SIZES)},
            **{f"AR_{most}": _mean(recall[..., 0, m]) for m, most in enumerate(self.max_detections)},
            **{f"AR_{size}": _mean(recall[..., 1 + index, 2]) for index, size in enumerate(_SIZES)},
        }
        objects = self._objects()
        per_class = [
            {
                "class": name,
                "objects": objects[index],
                "AP": _mean(precision[:, :, index, 0, 2]),
                "AP50": _mean(precision[0, :, index, 0, 2]),
                "AP75": _mean(precision[5, :, index, 0, 2]),
                "AR": _mean(recall[:, index, 0, 2]),
            }
            for index, name in enumerate(self.classes)
        ]
        curves: dict[str, Any] = {"recall": RECALLS.tolist()}
        present = [index for index, count in enumerate(objects) if count]
        for iou, t in _CURVES.items():
            rows = precision[t, :, :, 0, 2].T
            curves[iou] = {
                "mean": rows[present].mean(0).tolist() if present else None,
                "classes": [row.tolist() if objects[k] else None for k, row in enumerate(rows)],
            }
        return {"figures": figures, "per_class": per_class, "curves": curves}

    def _objects(self) -> list[int]:
        counts = np.zeros(len(self.classes) + 1, dtype=np.int64)
        for truth in self.truth.values():
            counts += np.bincount(truth.labels[~truth.iscrowd], minlength=len(counts))
        return counts[1:].tolist()


def _evaluated(evaluator: CocoEvaluator, found: Mapping[int, Found], kind: str) -> dict[str, Any]:
    from faster_coco_eval import COCO, COCOeval_faster

    images = [{"id": i, "height": t.height, "width": t.width} for i, t in evaluator.truth.items()]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(evaluator.classes)]

    def indexed(annotations: list[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    with _without_collection():
        true, detected = _true_entries(evaluator.truth, kind), _found_entries(evaluator.truth, found, kind)
        run = COCOeval_faster(indexed(true), indexed(detected), "bbox" if kind == "boxes" else "segm")
        run.params.maxDets = list(evaluator.max_detections)
        run.evaluate()
        run.accumulate()
    return run.eval


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause Python's search for circles of garbage: it looks through half a million dicts again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _true_entries(truth: Mapping[int, Record], kind: str) -> list[dict[str, Any]]:
    records = list(truth.values())
    entries = _entries(
        [r.image_id for r in records], [r.boxes for r in records], [r.labels for r in records],
        score=[np.zeros(len(r.labels)) for r in records], area=[r.areas for r in records],
        iscrowd=[r.iscrowd.astype(np.int64) for r in records],
    )  # fmt: skip
    return _with_masks(entries, [m for r in records for m in true_masks(r)]) if kind == "masks" else entries


def _found_entries(
    truth: Mapping[int, Record], found: Mapping[int, Found], kind: str
) -> list[dict[str, Any]]:
    here = [found[image_id] for image_id in truth]
    masks: list[Rle] = []
    if kind == "masks":
        masks = [
            m for r, f in zip(truth.values(), here, strict=True) for m in rles(f, r, range(len(f.masks)))
        ]
        areas = [np.array(mask_areas(masks))]
    else:
        areas = [(f.boxes[:, 2:].astype(np.float64) - f.boxes[:, :2]).prod(1) for f in here]
    entries = _entries(
        list(truth), [f.boxes for f in here], [f.labels for f in here],
        score=[f.scores for f in here], area=areas, iscrowd=[np.zeros(len(f.labels), dtype=np.int64) for f in here],
    )  # fmt: skip
    return _with_masks(entries, masks) if kind == "masks" else entries


def _entries(
    image_ids: list[int], boxes: list[NDArray[Any]], labels: list[NDArray[Any]], **columns: list[NDArray[Any]]
) -> list[dict[str, Any]]:
    """Return COCO's annotations: one dict an object, from arrays for each image; ids count from 1."""
    if not boxes:
        return []
    corners = np.concatenate(boxes).astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    images = np.repeat(np.array(image_ids), [len(part) for part in labels])
    listed = [np.concatenate(part).tolist() for part in (labels, *columns.values())]
    names = ("id", "image_id", "bbox", "category_id", *columns)
    rows = zip(range(1, len(images) + 1), images.tolist(), corners.tolist(), *listed, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _with_masks(entries: list[dict[str, Any]], masks: list[Rle]) -> list[dict[str, Any]]:
    for entry, mask in zip(entries, masks, strict=True):
        entry["segmentation"] = mask
    return entries


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
