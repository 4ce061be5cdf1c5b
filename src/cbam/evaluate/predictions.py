"""What a classifier said of each image: kept beside a result, so that mistakes can be looked at later."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from cbam.checkpoints import tensors_file
from cbam.errors import CBAMError
from cbam.evaluate.metrics import confusion_matrix

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """One row for each image, in the order of the set.

    Attributes:
        labels: True classes, int64 (N,).
        predicted: The likeliest classes, int64 (N,).
        confidence: Probability of the predicted class, float32 (N,).
        of_label: Probability of the true class, float32 (N,).

    >>> import torch
    >>> said = Predictions.of(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    >>> said.predicted, said.confidence
    (tensor([1, 0]), tensor([0.8808, 0.9526]))
    >>> said.surest_mistakes(5)
    [1]
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    of_label: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Predictions:
        """Return what a classifier says.

        Args:
            logits: (N, classes).
            labels: True classes (N,).
        """
        probabilities = logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        return cls(labels, predicted, confidence, probabilities.gather(1, labels[:, None])[:, 0])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Whether each image is predicted correctly, bool (N,)."""
        return self.labels == self.predicted

    def confusion(self, classes: int) -> Tensor:
        """Return the counts (classes, classes); see `confusion_matrix`."""
        return confusion_matrix(self.predicted, self.labels, classes)

    def surest_mistakes(self, count: int) -> list[int]:
        """Return the images that are predicted wrongly with the highest confidence, highest first."""
        wrong = (~self.correct).nonzero()[:, 0]
        order = self.confidence[wrong].argsort(descending=True, stable=True)
        return wrong[order][:count].tolist()

    def write(self, path: Path) -> None:
        """Write the rows, 16 bytes for each image."""
        rows = {
            "labels": self.labels.int(),
            "predicted": self.predicted.int(),
            "confidence": self.confidence,
            "of_label": self.of_label,
        }
        tensors_file.write(path, rows)

    @classmethod
    def read(cls, path: Path) -> Predictions | None:
        """Return what `write` wrote; None where there is no file, as in runs of earlier versions.

        Raises:
            CBAMError: The file is damaged.
        """
        if not path.is_file():
            return None
        try:
            found = dict(tensors_file.read(path))
        except (OSError, SafetensorError) as error:
            raise CBAMError(f"{path} is damaged: {error}") from error
        names = [field.name for field in fields(cls)]
        shapes = {tuple(rows.shape) for rows in found.values()}
        if sorted(found) != sorted(names) or len(shapes) != 1 or len(*shapes) != 1:
            raise CBAMError(
                f"{path} is damaged: it needs {', '.join(names)}, each of the same shape (images,)"
            )
        return cls(found["labels"].long(), found["predicted"].long(), found["confidence"], found["of_label"])
