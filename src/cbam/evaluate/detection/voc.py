"""Pascal VOC's average precision: at 11 recalls, or the area below the curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbam.errors import CBAMError
from cbam.evaluate.detection.average_precision import average_precision
from cbam.evaluate.detection.collected import DetectionEvaluator
from cbam.evaluate.detection.ground_truth import Record
from cbam.evaluate.detection.matching import ClassMatches, Matches, match_voc


class VocEvaluator(DetectionEvaluator):
    """Average precision as VOC defines it: one IoU threshold, difficult objects neither right nor wrong.

    A detection is matched with the object of its class and image that it overlaps most; if another with a higher score
    has taken that one, it is wrong, though a second object may be free. Implementations differ:

    - py-faster-rcnn, Detectron and detectron2 want an IoU above 0.5 (`strict`, the default); VOC's own code, ChainerCV
      and MMDetection accept 0.5 itself.
    - All but MMDetection add 1 to widths and heights (`inclusive`), because in VOC's files x2 and y2 name the last
      pixel inside. Where corners are edges between pixels, x1 and y1 one less than in the files, the default
      `inclusive=False` gives the same IoU.
    - At 11 points all but VOC's own code compare with the floating point of `np.arange`: see `average_precision`.

    Args:
        records: the images of a split with their true objects.
        classes: the names of the labels 1, 2, ...
        points: 11 (VOC 2007) or "all" (since 2010).
        iou: the threshold.
        strict: whether the IoU must lie above the threshold; otherwise it may equal it.
        inclusive: whether x2 and y2 name the last pixel inside, so that a width is x2 - x1 + 1.

    Raises:
        CBAMError: an option has no such value, or the records do not fit the classes.

    >>> import torch
    >>> from cbam.data.detection.records import Annotation, make_record
    >>> record = make_record(7, "cat.jpg", (100, 80), [Annotation((10, 10, 60, 50), label=1)])
    >>> evaluator = VocEvaluator([record], ["cat"], points="all")
    >>> found = {"boxes": torch.tensor([[10.0, 10, 60, 50]]), "labels": torch.ones(1).long(), "scores": torch.ones(1)}
    >>> evaluator.update(7, found)
    >>> evaluator.compute()["mAP"]
    1.0
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: Sequence[str],
        *,
        points: Literal[11, "all"] = 11,
        iou: float = 0.5,
        strict: bool = True,
        inclusive: bool = False,
    ):
        if points not in (11, "all"):
            raise CBAMError(f"points takes 11 (VOC 2007) or 'all' (VOC 2010 and later); given {points!r}")
        if not 0 < iou < 1:
            raise CBAMError(f"iou must lie between 0 and 1, for example 0.5; given {iou}")
        super().__init__(records, classes)
        self.points, self.iou, self.strict, self.inclusive = points, iou, strict, inclusive

    def compute(self) -> dict[str, Any]:
        """Evaluate all images.

        Returns:
            "mAP": the mean over the classes with objects, None without any; "per_class": for each class a dict of
            class, objects (difficult ones not counted), AP (None without objects); "curves": for each class "recall"
            and "precision" after each detection, not interpolated, or None.

        Raises:
            CBAMError: some image of the split has not been given to `update`.
        """
        matched = self.matches()
        scores = [float(average_precision(rows, self.points)[0, 0]) for rows in matched.classes]
        defined = [score for score in scores if not np.isnan(score)]
        return {
            "mAP": float(np.mean(defined)) if defined else None,
            "per_class": [
                {
                    "class": name,
                    "objects": int(rows.objects.sum()),
                    "AP": None if np.isnan(score) else score,
                }
                for name, rows, score in zip(self.classes, matched.classes, scores, strict=True)
            ],
            "curves": [_curve(rows) for rows in matched.classes],
        }

    def matches(self) -> Matches:
        """Return what each detection was matched with, for `bootstrap_ap`."""
        found = self._complete()
        rules = {"strict": self.strict, "inclusive": self.inclusive}
        return match_voc(self.truth, found, len(self.classes), self.iou, **rules)


def precision_recall(
    matches: ClassMatches, threshold: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall after each detection of a class that is not ignored, by descending score."""
    counted = ~matches.ignored[threshold]
    right = matches.correct[threshold, counted].cumsum()
    return right / np.arange(1, len(right) + 1), right / max(1, int(matches.objects.sum()))


def _curve(matches: ClassMatches) -> dict[str, list[float]] | None:
    if not matches.objects.any():
        return None
    precision, recall = precision_recall(matches)
    return {"recall": recall.tolist(), "precision": precision.tolist()}
