"""What a confusion matrix and the probabilities say of a classifier: each class, confused pairs, calibration."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cbam.errors import CBAMError, MissingExtra

BINS = 15
"""Of confidence, equally wide: as many as Guo et al. (2017) use."""


def confusion_matrix(predictions: Tensor, labels: Tensor, n: int) -> Tensor:
    """Count how often each true class was predicted as each class.

    Args:
        predictions: predicted classes, integers (N,) in 0..n-1.
        labels: true classes, integers (N,) in 0..n-1.
        n: number of classes.

    Returns:
        int64 (n, n): row = true class, column = predicted class, on the labels' device.

    Raises:
        CBAMError: if the two differ in shape, are not integers, or hold a class outside 0..n-1.

    >>> import torch
    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    if n < 1:
        raise CBAMError(f"confusion_matrix needs at least one class, given n={n}.")
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise CBAMError(
            "confusion_matrix takes predictions and labels of the same shape (N,), given "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}. From logits: logits.argmax(dim=1)."
        )
    for kind, values in (("predictions", predictions), ("labels", labels)):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise CBAMError(f"confusion_matrix takes integer {kind}, given {values.dtype}.")
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < n:
            raise CBAMError(
                f"{kind} must lie in 0..{n - 1} for n={n} classes, given {int(values.min())}..{int(values.max())}."
            )
    cells = labels.long() * n + predictions.to(labels.device).long()
    return torch.bincount(cells, minlength=n * n).reshape(n, n)


@dataclass(frozen=True)
class ClassScores:
    """How well each class is found; a score is None where nothing was divided by.

    Attributes:
        images: Images of each class.
        predicted: Images that were predicted as each class.
        precision: Share of those predicted as the class that are of it.
        recall: Share of the class's images that are predicted as it: its accuracy.
        f1: Harmonic mean of the two.

    >>> scores = class_scores(torch.tensor([[3, 1], [0, 0]]))
    >>> scores.precision, scores.recall, scores.balanced_accuracy
    ((1.0, 0.0), (0.75, None), 0.75)
    """

    images: tuple[int, ...]
    predicted: tuple[int, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images: every class weighs the same."""
        return statistics.fmean(value for value in self.recall if value is not None)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images."""
        return statistics.fmean(
            value for value, images in zip(self.f1, self.images, strict=True) if images and value is not None
        )


def class_scores(confusion: Tensor) -> ClassScores:
    """Return precision, recall and F1 of every class, as scikit-learn computes them.

    Args:
        confusion: Counts (n, n), rows are true classes, columns predicted ones; at least one image.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import precision_recall_fscore_support
    except ImportError as error:
        raise MissingExtra("precision, recall and F1", "train", "scikit-learn") from error

    true, predicted = confusion.nonzero(as_tuple=True)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true.numpy(),
        predicted.numpy(),
        labels=range(len(confusion)),
        sample_weight=confusion[true, predicted].numpy(),
        zero_division=math.nan,
    )
    return ClassScores(
        tuple(confusion.sum(1).tolist()),
        tuple(confusion.sum(0).tolist()),
        *(tuple(None if math.isnan(x) else x for x in row.tolist()) for row in (precision, recall, f1)),
    )


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether a classifier is right as often as it says.

    Attributes:
        ece: Expected calibration error, 0..1: the mean over all images of how far accuracy and mean confidence of
            their bin lie apart (Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3).
        bins: Those of the `BINS` bins that have images.
    """

    ece: float
    bins: tuple[Bin, ...]

    def content(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {
            "expected_calibration_error": self.ece,
            "bins_of_equal_width": BINS,
            "bins": [vars(each) for each in self.bins],
        }


def calibration(confidence: Tensor, correct: Tensor) -> Calibration | None:
    """Compare how sure a classifier is with how often it is right; None if a probability is not finite.

    Args:
        confidence: Probability of the predicted class, (N,), at least one.
        correct: Whether it is the true one, bool (N,).

    >>> found = calibration(torch.tensor([0.9, 0.9, 0.5, 0.5]), torch.tensor([True, False, True, False]))
    >>> round(found.ece, 3), [(each.images, each.accuracy) for each in found.bins]
    (0.2, [(2, 0.5), (2, 0.5)])
    """
    confidence = confidence.double()
    if not confidence.isfinite().all():
        return None
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])
    counts = torch.bincount(place, minlength=BINS)
    sure = torch.bincount(place, confidence, minlength=BINS)
    right = torch.bincount(place, correct.double(), minlength=BINS)
    bins = tuple(
        Bin(
            float(edges[k]), float(edges[k + 1]), int(counts[k]), float(sure[k] / counts[k]),
            float(right[k] / counts[k]),
        )
        for k in counts.nonzero()[:, 0].tolist()
    )  # fmt: skip
    return Calibration(float((sure - right).abs().sum() / len(confidence)), bins)


@dataclass(frozen=True)
class ConfusedPair:
    """Images of class `true` that were predicted as class `predicted`: how many, and their share of the class."""

    true: int
    predicted: int
    images: int
    share: float


def confused_pairs(confusion: Tensor, count: int) -> list[ConfusedPair]:
    """Return the pairs of classes that are confused most often, the most images first.

    Args:
        confusion: Counts (n, n), rows are true classes, columns predicted ones.
        count: At most so many.

    >>> confused_pairs(torch.tensor([[3, 1, 0], [2, 8, 0], [0, 0, 5]]), 5)[0]
    ConfusedPair(true=1, predicted=0, images=2, share=0.2)
    """
    true, predicted = confusion.clone().fill_diagonal_(0).nonzero(as_tuple=True)
    images = confusion[true, predicted]
    share = images.double() / confusion.sum(1)[true]
    # Stable, so the last key first; pairs are in the order of the classes already.
    order = share.argsort(descending=True, stable=True)
    order = order[images[order].argsort(descending=True, stable=True)][:count]
    columns = (column[order].tolist() for column in (true, predicted, images, share))
    return [ConfusedPair(*row) for row in zip(*columns, strict=True)]


def sampling_error(accuracy: float, images: int) -> float:
    """Return the half width of the 95 % interval of an accuracy that is measured on this number of images.

    The normal approximation 1.96 sqrt(p (1 - p) / n).

    >>> f"{sampling_error(0.9, 10_000):.4f}"
    '0.0059'
    """
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / images)
