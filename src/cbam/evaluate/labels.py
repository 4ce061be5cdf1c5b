"""How well several labels of an image are found: average precision of each, and what a threshold of one half gives."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cbam.errors import MissingExtra

TRUE_FROM = 0.5
"""The probability from which on a label counts as found."""


@dataclass(frozen=True)
class LabelScores:
    """Scores of each label; None where there is nothing to divide by, such as a label that no image has.

    Attributes:
        images: Images that have the label.
        predicted: Images in which it is found, with a probability of one half or more.
        average_precision: Area under the curve of precision over recall (`sklearn.metrics.average_precision_score`).
        precision: Share of the images in which it is found that have it.
        recall: Share of the images with the label in which it is found.
        f1: Harmonic mean of the two.
        micro_f1: F1 over all labels of all images together: frequent labels count more.
        exact: Share of the images whose labels are all right, 0..1.
    """

    images: tuple[int, ...]
    predicted: tuple[int, ...]
    average_precision: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]
    micro_f1: float | None
    exact: float

    @property
    def mean_ap(self) -> float:
        """Mean average precision over the labels that some image has; 0 if none has any."""
        return _mean(self.average_precision)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the labels that some image has."""
        return _mean(
            value or 0.0 if count else None for value, count in zip(self.f1, self.images, strict=True)
        )


def label_scores(probabilities: Tensor, truth: Tensor) -> LabelScores:
    """Compare probabilities with the labels that images have.

    Args:
        probabilities: (N, labels), 0..1, finite.
        truth: (N, labels), 0 or 1.

    Raises:
        MissingExtra: scikit-learn is not installed.

    >>> import torch
    >>> said = torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.3, 0.3]])
    >>> scores = label_scores(said, torch.tensor([[1, 0], [0, 0], [1, 0]]))
    >>> [value and round(value, 3) for value in scores.average_precision], scores.recall, round(scores.exact, 3)
    ([0.833, None], (0.5, None), 0.333)
    """
    try:
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support
    except ImportError as error:
        raise MissingExtra("average precision of labels", "train", "scikit-learn") from error

    true, said = truth.cpu().numpy().astype(int), probabilities.cpu().numpy()
    found = (said >= TRUE_FROM).astype(int)

    def at_half(true: Any, found: Any) -> list[float | None]:
        # Each label for itself: of a table with a single one scikit-learn would score the classes 0 and 1.
        rows = precision_recall_fscore_support(true, found, labels=[1], zero_division=math.nan)[:3]
        return [None if math.isnan(value) else float(value) for (value,) in rows]

    columns = range(true.shape[1])
    precision, recall, f1 = zip(*(at_half(true[:, k], found[:, k]) for k in columns), strict=True)
    areas = [
        float(average_precision_score(true[:, k], said[:, k])) if true[:, k].any() else None for k in columns
    ]
    return LabelScores(
        images=tuple(true.sum(0).tolist()),
        predicted=tuple(found.sum(0).tolist()),
        average_precision=tuple(areas),
        precision=precision,
        recall=recall,
        f1=f1,
        micro_f1=at_half(true.ravel(), found.ravel())[2],
        exact=float((true == found).all(1).mean()),
    )


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0
