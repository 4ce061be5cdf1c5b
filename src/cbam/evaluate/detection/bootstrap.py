"""How far a mAP, or the difference of two, depends on which images were in the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbam.errors import CBAMError
from cbam.evaluate.detection.average_precision import Points, average_precision
from cbam.evaluate.detection.matching import Matches

_CELLS = 20_000_000  # (resamples, detections) of a class in memory at a time: 160 MB


@dataclass(frozen=True)
class BootstrapInterval:
    """A mAP, or a difference of two, on the images as they are, and its percentile interval over resampled images."""

    estimate: float
    low: float
    high: float
    resamples: int
    confidence: float


def bootstrap_ap(
    ours: Matches | Sequence[Matches],
    theirs: Matches | Sequence[Matches] | None = None,
    *,
    points: Points = 101,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> BootstrapInterval:
    """Return the percentile interval of a mAP, or of ours - theirs, over images drawn with replacement.

    Each resample draws as many images as there are, with their objects and detections, and ranks all detections of a
    class anew: what is resampled is the mAP of the whole set, not a score of each image. It is the mean of the average
    precisions over the classes that have an object in the resample and over the IoU thresholds of the matches. Both
    detectors get the same draws. With several runs (seeds) of a detector the mean of their mAPs is taken, on the same
    draws; the interval then speaks of other images, not of other seeds: for those see
    `cbam.compare.statistics.paired_difference` of the mAPs.

    Args:
        ours: of an evaluator's `matches()`; several for several runs.
        theirs: those of another detector on the same images; None for the mAP itself.
        points: how a precision is averaged over recall: 101 (COCO), 11 or "all" (VOC).
        resamples: how many sets of images are drawn.
        seed: of the draws.
        confidence: coverage of the interval, between 0 and 1.

    Raises:
        CBAMError: the images, classes or IoU thresholds differ, or there is no image with an object.
    """
    sides = [_listed(ours), [] if theirs is None else _listed(theirs)]
    first = sides[0][0]
    for other in sides[0] + sides[1]:
        _require_same(first, other)
    if not 0 < confidence < 1:
        raise CBAMError(f"confidence must lie between 0 and 1, for example 0.95; got {confidence}")
    images = len(first.image_ids)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    weights = np.concatenate([np.ones((1, images), dtype=np.int64), draws])
    values = _mean_ap(sides[0], weights, points)
    if sides[1]:
        values = values - _mean_ap(sides[1], weights, points)
    if np.isnan(values[0]):
        raise CBAMError("no image has an object that counts: there is no mAP")
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values[1:], [tail, 100 - tail])
    return BootstrapInterval(float(values[0]), float(low), float(high), resamples, confidence)


def _listed(matches: Matches | Sequence[Matches]) -> list[Matches]:
    listed = [matches] if isinstance(matches, Matches) else list(matches)
    if not listed:
        raise CBAMError("no run to resample: give the matches of one or more")
    return listed


def _require_same(first: Matches, other: Matches) -> None:
    for what, ours, theirs in (
        ("image ids", first.image_ids, other.image_ids),
        ("IoU thresholds", first.ious, other.ious),
        ("number of classes", len(first.classes), len(other.classes)),
        ("objects", *([rows.objects.tolist() for rows in m.classes] for m in (first, other))),
    ):
        if ours != theirs:
            raise CBAMError(f"both detectors must be evaluated on the same images: their {what} differ")


def _mean_ap(runs: Sequence[Matches], weights: NDArray[np.int64], points: Points) -> NDArray[np.float64]:
    return np.mean([_map(run, weights, points) for run in runs], axis=0)


def _map(matches: Matches, weights: NDArray[np.int64], points: Points) -> NDArray[np.float64]:
    total = np.zeros(len(weights))
    classes = np.zeros(len(weights))
    for rows in matches.classes:
        step = max(1, _CELLS // max(1, len(rows.scores)))
        parts = [
            average_precision(rows, points, weights[start : start + step]).mean(1)
            for start in range(0, len(weights), step)
        ]
        found = np.concatenate(parts)
        classes += ~np.isnan(found)
        total += np.nan_to_num(found)
    return np.divide(total, classes, out=np.full(len(weights), np.nan), where=classes > 0)
