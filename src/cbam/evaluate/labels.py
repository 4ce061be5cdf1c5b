"""How well several labels of an image are found: average precision of each, and what a threshold of one half gives."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from cbam.errors import MissingExtra


@dataclass(frozen=True)
class LabelScores:
    """Scores of each label; None where there is nothing to divide by, such as a label that no image has.

    Attributes:
        images: Images that have the label.
        average_precision: Area under the curve of precision over recall (`sklearn.metrics.average_precision_score`).
        precision: Of those predicted with a probability of one half or more.
        recall: Likewise.
        f1: Likewise.
        exact: Share of the images whose labels are all right at one half, 0..1.
    """

    images: tuple[int, ...]
    average_precision: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]
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
    found = (said >= 0.5).astype(int)
    precision, recall, f1, images = precision_recall_fscore_support(
        true, found, average=None, zero_division=math.nan
    )
    areas = [
        float(average_precision_score(true[:, label], said[:, label])) if true[:, label].any() else None
        for label in range(true.shape[1])
    ]
    rows = [tuple(None if math.isnan(x) else x for x in row.tolist()) for row in (precision, recall, f1)]
    exact = float((true == found).all(1).mean())
    return LabelScores(tuple(images.tolist()), tuple(areas), rows[0], rows[1], rows[2], exact)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0
