"""Which detection found which object: by COCO's rules, and by VOC's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbam.evaluate.detection.collected import Found, rles
from cbam.evaluate.detection.ground_truth import Record, true_masks
from cbam.evaluate.detection.rle import mask_iou

Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassMatches:
    """The D detections of one class over all images, by descending score; at equal scores in the order of the images.

    Attributes:
        scores: float32 (D,).
        images: int64 (D,), positions in the ascending order of image ids.
        correct: bool (T, D), at each IoU threshold.
        ignored: bool (T, D): neither right nor wrong, such as a detection of a crowd or of a difficult object.
        objects: int64 (images,), how many objects each image has that count.
    """

    scores: NDArray[np.float32]
    images: NDArray[np.int64]
    correct: Booleans
    ignored: Booleans
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """The matches of each class, the image ids, and the IoU thresholds."""

    classes: tuple[ClassMatches, ...]
    image_ids: tuple[int, ...]
    ious: tuple[float, ...]


def box_iou(
    detected: NDArray[np.float64],
    true: NDArray[np.float64],
    crowd: Booleans | None = None,
    extra: float = 0.0,
) -> NDArray[np.float64]:
    """Return the IoU of each detected box with each true one, (D, G).

    Args:
        detected: (D, 4), x1, y1, x2, y2.
        true: (G, 4).
        crowd: (G,) which true boxes surround many objects: there the share of the detected box counts.
        extra: added to widths and heights: 1 where x2 and y2 name the last pixel inside, as in VOC's files.
    """
    low = np.maximum(detected[:, None, :2], true[None, :, :2])
    high = np.minimum(detected[:, None, 2:], true[None, :, 2:])
    shared = np.clip(high - low + extra, 0, None).prod(2)
    ours, theirs = ((boxes[:, 2:] - boxes[:, :2] + extra).prod(1) for boxes in (detected, true))
    together = ours[:, None] + theirs[None] - shared
    if crowd is not None:
        together = np.where(crowd[None], ours[:, None], together)
    return np.divide(shared, together, out=np.zeros_like(shared), where=together > 0)


# (IoU (D, G) by descending score, thresholds (T,), which objects do not count (G,)) -> correct, ignored (T, D)
Rule = Callable[[NDArray[np.float64], NDArray[np.float64], Booleans], tuple[Booleans, Booleans]]


def coco_rule(
    iou: NDArray[np.float64], thresholds: NDArray[np.float64], crowd: Booleans
) -> tuple[Booleans, Booleans]:
    """Match each detection with the free object of the highest IoU, at least the threshold; else with a crowd.

    A crowd takes any number of detections, which are then ignored. Of objects with equal IoU the last is taken.
    """
    counts, crowds = iou[:, ~crowd], iou[:, crowd]
    correct = np.zeros((len(thresholds), len(iou)), dtype=bool)
    ignored = np.zeros_like(correct)
    free = np.ones((len(thresholds), counts.shape[1]), dtype=bool)
    best = counts.max(1, initial=-1.0)
    in_crowd = crowds.max(1, initial=-1.0)[None] >= thresholds[:, None]
    for detection in np.flatnonzero(best >= thresholds.min()):
        row = np.where(free, counts[detection], -1.0)
        chosen = row.shape[1] - 1 - row[:, ::-1].argmax(1)
        hit = row.max(1) >= thresholds
        correct[hit, detection] = True
        free[hit, chosen[hit]] = False
    ignored = in_crowd & ~correct
    return correct, ignored


def voc_rule(strict: bool) -> Rule:
    """Return VOC's rule: the object of the highest IoU counts, free or not; the first to find it is right."""

    def match(
        iou: NDArray[np.float64], thresholds: NDArray[np.float64], difficult: Booleans
    ) -> tuple[Booleans, Booleans]:
        correct = np.zeros((len(thresholds), len(iou)), dtype=bool)
        ignored = np.zeros_like(correct)
        if not iou.shape[1]:
            return correct, ignored
        nearest, best = iou.argmax(1), iou.max(1)
        reached = best[None] > thresholds[:, None] if strict else best[None] >= thresholds[:, None]
        ignored = reached & difficult[nearest][None]
        for t, row in enumerate(reached & ~ignored):
            hits = np.flatnonzero(row)
            correct[t, hits[np.unique(nearest[hits], return_index=True)[1]]] = True
        return correct, ignored

    return match


def match_coco(
    truth: Mapping[int, Record],
    found: Mapping[int, Found],
    classes: int,
    ious: NDArray[np.float64],
    most: int,
    *,
    masks: bool = False,
) -> Matches:
    """Match as COCO does over all sizes of objects, with at most `most` detections an image and class."""

    outlines = {image: true_masks(there) for image, there in truth.items()} if masks else {}

    def overlap(image: int, chosen: NDArray[np.intp], mine: NDArray[np.intp]) -> NDArray[np.float64]:
        there, here = truth[image], found[image]
        crowd = there.iscrowd[mine]
        if masks:
            return mask_iou(rles(here, there, chosen), [outlines[image][i] for i in mine], crowd)
        return box_iou(here.boxes[chosen].astype(np.float64), there.boxes[mine], crowd)

    aside = {image: there.iscrowd for image, there in truth.items()}
    thresholds = np.minimum(
        ious, 1 - 1e-10
    )  # pycocotools' own: IoU 1 reaches a threshold of 1 despite rounding
    return _matches(truth, found, classes, thresholds, most, overlap, coco_rule, aside)


def match_voc(
    truth: Mapping[int, Record],
    found: Mapping[int, Found],
    classes: int,
    iou: float,
    *,
    strict: bool,
    inclusive: bool,
) -> Matches:
    """Match as VOC does; see `VocEvaluator` for the options."""

    def overlap(image: int, chosen: NDArray[np.intp], mine: NDArray[np.intp]) -> NDArray[np.float64]:
        detected = found[image].boxes[chosen].astype(np.float64)
        return box_iou(detected, truth[image].boxes[mine], extra=float(inclusive))

    aside = {image: there.difficult for image, there in truth.items()}
    return _matches(truth, found, classes, np.array([iou]), None, overlap, voc_rule(strict), aside)


def _matches(
    truth: Mapping[int, Record],
    found: Mapping[int, Found],
    classes: int,
    thresholds: NDArray[np.float64],
    most: int | None,
    overlap: Callable[[int, NDArray[np.intp], NDArray[np.intp]], NDArray[np.float64]],
    rule: Rule,
    aside: Mapping[int, Booleans],
) -> Matches:
    ids = sorted(truth)
    objects = np.zeros((classes, len(ids)), dtype=np.int64)
    parts: list[list[tuple[NDArray[np.float32], int, Booleans, Booleans]]] = [[] for _ in range(classes)]
    for position, image in enumerate(ids):
        there, here = truth[image], found[image]
        counted = np.bincount(there.labels[~aside[image]], minlength=classes + 1)
        objects[:, position] = counted[1:]
        order = np.argsort(-here.scores, kind="stable")
        for label in np.unique(here.labels):
            chosen = order[here.labels[order] == label][:most]
            mine = np.flatnonzero(there.labels == label)
            pair = rule(overlap(image, chosen, mine), thresholds, aside[image][mine])
            parts[label - 1].append((here.scores[chosen], position, *pair))
    per_class = (
        _of_class(rows, counts, len(thresholds)) for rows, counts in zip(parts, objects, strict=True)
    )
    return Matches(tuple(per_class), tuple(ids), tuple(thresholds.tolist()))


def _of_class(
    rows: Sequence[tuple[NDArray[np.float32], int, Booleans, Booleans]],
    objects: NDArray[np.int64],
    thresholds: int,
) -> ClassMatches:
    if not rows:
        none = np.zeros((thresholds, 0), dtype=bool)
        return ClassMatches(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64), none, none, objects)
    scores = np.concatenate([row[0] for row in rows])
    order = np.argsort(-scores, kind="stable")
    images = np.repeat([row[1] for row in rows], [len(row[0]) for row in rows])
    correct, ignored = (np.concatenate([row[part] for row in rows], axis=1)[:, order] for part in (2, 3))
    return ClassMatches(scores[order], images[order], correct, ignored, objects)
