"""Average precision from ranked detections, for many weightings of the images at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cbam.evaluate.detection.matching import ClassMatches

Points = Literal[101, 11, "all"]
_COCO_RECALLS = np.linspace(0.0, 1.0, 101)


def average_precision(
    matches: ClassMatches, points: Points, weights: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the average precision of a class at each IoU threshold.

    At each rank, precision is the share of right detections among those up to it, recall the share of the objects
    found; a precision is raised to the highest at the same or a higher recall. With integer weights an image counts as
    often as if it were there so many times. Copies of a detection share a rank: that equals an evaluation of copied
    images, except that detections of equal score within an image are counted by detection, not by copy.

    Args:
        matches: of one class.
        points: 101: the mean at COCO's recalls 0, 0.01, ..., 1, in its floating point. 11: at VOC 2007's recalls 0,
            0.1, ..., 1, compared exactly, as integers; py-faster-rcnn, ChainerCV and MMDetection take them from
            `np.arange`, where 0.30000000000000004 leaves out a recall of exactly 3/10. "all": the area below the
            curve, as in VOC since 2010.
        weights: int (B, images), B weightings; default each image once.

    Returns:
        (B, T), nan where no object has a weight.
    """
    if weights is None:
        weights = np.ones((1, len(matches.objects)), dtype=np.int64)
    objects = weights @ matches.objects  # (B,)
    found = np.full((len(weights), len(matches.correct)), np.nan)
    found[objects > 0] = 0.0
    # Precision is highest, and recall first reached, where a detection is right: only those ranks matter.
    ranks = matches.correct.any(0)
    if not ranks.any():
        return found
    by_rank = weights[:, matches.images]
    up_to = by_rank.cumsum(1)
    for t, (correct, ignored) in enumerate(zip(matches.correct, matches.ignored, strict=True)):
        places = np.flatnonzero(correct)
        if not len(places):
            continue
        right = by_rank[:, places].cumsum(1)
        taken = up_to[:, places]
        if ignored.any():
            taken = taken - (by_rank * ignored).cumsum(1)[:, places]
        precision = right / np.maximum(taken, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found[:, t] = np.where(objects > 0, _average(envelope, right, objects, points), np.nan)
    return found


def _average(
    envelope: NDArray[np.floating], right: NDArray[np.int64], objects: NDArray[np.int64], points: Points
) -> NDArray[np.floating]:
    counts = np.maximum(objects, 1)[:, None]
    reached: NDArray[np.floating | np.integer] = right / counts
    if points == 11:
        reached = 10 * right // counts + 1  # how many of the recalls
    elif points == 101:
        reached = np.searchsorted(_COCO_RECALLS, reached, side="right")
    gained = np.diff(reached, axis=1, prepend=0)
    return (envelope * gained).sum(1) / (1 if points == "all" else points)
