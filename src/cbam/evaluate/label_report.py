"""What an evaluation of a network for several labels an image found, as numbers for files and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from cbam.evaluate.class_report import MISTAKES, as_csv
from cbam.evaluate.labels import TRUE_FROM, LabelScores, label_scores
from cbam.evaluate.metrics import Calibration, calibration

ROW = ("label", "images", "predicted", "average_precision", "precision", "recall", "f1")


@dataclass(frozen=True)
class LabelReport:
    """One network on one set of images with any number of labels each.

    Attributes:
        network: What was evaluated, as it was typed.
        data: What the images are, in a sentence.
        classes: The labels.
        loss: Mean binary cross-entropy over images and labels.
        probabilities: Of each label for each image, (N, labels).
        truth: Whether each image has the label, 0 or 1, (N, labels).
        names: What identifies each image.
    """

    network: str
    data: str
    classes: Sequence[str]
    loss: float
    probabilities: Tensor
    truth: Tensor
    names: Sequence[str]

    @cached_property
    def scores(self) -> LabelScores:
        """Average precision of each label, and what a threshold of one half gives."""
        return label_scores(self.probabilities, self.truth)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.truth)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Each probability against the share of the images that have the label; None if one is not finite."""
        return calibration(self.probabilities.flatten(), self.truth.flatten() > 0)

    @cached_property
    def mistakes(self) -> list[int]:
        """The images with a label that the network is surest about and wrong: at most one line for each."""
        error, _ = self._errors
        wrong = (self._found != (self.truth > 0)).any(1).nonzero()[:, 0]
        return wrong[error[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()

    @cached_property
    def _found(self) -> Tensor:
        return self.probabilities >= TRUE_FROM

    @cached_property
    def _errors(self) -> tuple[Tensor, Tensor]:
        """How far the worst label of each image is from the truth, and which it is."""
        error, label = (self.probabilities - self.truth).abs().max(1)
        return error, label

    def mistake(self, index: int) -> dict[str, Any]:
        """Return which labels an image has and which are found, with the one that is the furthest from the truth."""
        label = int(self._errors[1][index])
        return {
            "image": self.names[index],
            "labels": self._named(self.truth[index] > 0),
            "predicted": self._named(self._found[index]),
            "worst": self.classes[label],
            "has_worst": bool(self.truth[index, label]),
            "probability_of_worst": float(self.probabilities[index, label]),
        }

    def _named(self, chosen: Tensor) -> list[str]:
        return [self.classes[label] for label in chosen.nonzero()[:, 0].tolist()]

    def class_rows(self) -> list[dict[str, Any]]:
        """Return the scores of each label."""
        scores = self.scores
        columns = (getattr(scores, name) for name in ROW[1:])
        return [dict(zip(ROW, row, strict=True)) for row in zip(self.classes, *columns, strict=True)]

    def content(self) -> dict[str, Any]:
        """Return everything but the single images, for a JSON file; shares are 0..1."""
        scores, found = self.scores, self.calibration
        return {
            "source": self.network,
            "images_from": self.data,
            "images": self.images,
            "mean_average_precision": scores.mean_ap,
            "macro_f1": scores.macro_f1,
            "micro_f1": scores.micro_f1,
            "all_labels_right": scores.exact,
            "binary_cross_entropy": self.loss,
            "labels_from_probability": TRUE_FROM,
            "calibration": found and found.content(),
            "labels": self.class_rows(),
            "most_wrong_images": [self.mistake(index) for index in self.mistakes],
        }

    def classes_csv(self) -> str:
        """Return the scores of each label, one line each."""
        return as_csv(self.class_rows())

    def images_csv(self) -> str:
        """Return the labels of each image, those that are found, and every probability, one line each."""
        names = [f"p({name})" for name in self.classes]
        rows = []
        for index, shares in enumerate(self.probabilities.tolist()):
            said = self.mistake(index)
            labels = {name: ";".join(said[name]) for name in ("labels", "predicted")}
            rows.append({"image": said["image"], **labels, **dict(zip(names, shares, strict=True))})
        return as_csv(rows)
