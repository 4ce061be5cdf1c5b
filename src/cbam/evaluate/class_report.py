"""What an evaluation of a classifier found, as numbers for files and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from cbam.evaluate.metrics import (
    Calibration,
    ClassScores,
    ConfusedPair,
    calibration,
    class_scores,
    confused_pairs,
)
from cbam.evaluate.predictions import Predictions

PAIRS, MISTAKES = 10, 12


@dataclass(frozen=True)
class ClassReport:
    """One classifier on one set of images.

    Attributes:
        network: What was evaluated, as it was typed.
        data: What the images are, in a sentence.
        classes: The network's.
        loss: Mean cross-entropy.
        top5: Share of the images whose class is among the five likeliest; None for five classes or fewer.
        predictions: What the network said of each image.
        names: What identifies each image.
    """

    network: str
    data: str
    classes: Sequence[str]
    loss: float
    top5: float | None
    predictions: Predictions
    names: Sequence[str]

    @cached_property
    def confusion(self) -> Tensor:
        """Counts (n, n); rows are true classes, columns predicted ones."""
        return self.predictions.confusion(len(self.classes))

    @cached_property
    def scores(self) -> ClassScores:
        """Precision, recall and F1 of each class."""
        return class_scores(self.confusion)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.predictions)

    @property
    def accuracy(self) -> float:
        """Share of the images that are predicted correctly."""
        return int(self.predictions.correct.sum()) / self.images

    @cached_property
    def calibration(self) -> Calibration | None:
        """Confidence against accuracy; None if a probability is not finite."""
        return calibration(self.predictions.confidence, self.predictions.correct)

    @cached_property
    def pairs(self) -> list[ConfusedPair]:
        """The pairs of classes that are confused most often."""
        return confused_pairs(self.confusion, PAIRS)

    @cached_property
    def mistakes(self) -> list[int]:
        """The images that the network is surest about and wrong."""
        return self.predictions.surest_mistakes(MISTAKES)

    def mistake(self, index: int) -> dict[str, Any]:
        """Return what was said of an image."""
        said = self.predictions
        return {
            "image": self.names[index],
            "class": self.classes[int(said.labels[index])],
            "predicted": self.classes[int(said.predicted[index])],
            "confidence": float(said.confidence[index]),
            "probability": float(said.of_label[index]),
        }

    def class_rows(self) -> list[dict[str, Any]]:
        """Return the scores of each class."""
        scores = self.scores
        rows = zip(
            self.classes,
            scores.images,
            scores.predicted,
            scores.precision,
            scores.recall,
            scores.f1,
            strict=True,
        )
        names = ("class", "images", "predicted", "precision", "recall", "f1")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def content(self) -> dict[str, Any]:
        """Return everything but the single images, for a JSON file; shares are 0..1."""
        found = self.calibration
        return {
            "source": self.network,
            "images_from": self.data,
            "images": self.images,
            "top1": self.accuracy,
            **({} if self.top5 is None else {"top5": self.top5}),
            "cross_entropy": self.loss,
            "balanced_accuracy": self.scores.balanced_accuracy,
            "macro_f1": self.scores.macro_f1,
            "calibration": found and found.content(),
            "classes": self.class_rows(),
            "confusion": {
                "rows": "true class",
                "columns": "predicted class",
                "images": self.confusion.tolist(),
            },
            "most_confused_pairs": [
                {**vars(pair), "true": self.classes[pair.true], "predicted": self.classes[pair.predicted]}
                for pair in self.pairs
            ],
            "most_confused_images": [self.mistake(index) for index in self.mistakes],
        }

    def classes_csv(self) -> str:
        """Return the scores of each class, one line each."""
        return as_csv(self.class_rows())

    def images_csv(self) -> str:
        """Return what was said of each image, one line each."""
        return as_csv([self.mistake(index) for index in range(self.images)])


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
