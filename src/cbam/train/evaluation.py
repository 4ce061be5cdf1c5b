"""How well a classifier does: exact counts over all images, on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.evaluate.predictions import Predictions

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

_COLUMNS = 6


@dataclass(frozen=True)
class Evaluation:
    """Loss and confusion of one model.

    Attributes:
        loss: Mean cross-entropy, without label smoothing.
        confusion: (classes, classes) int64; rows are true classes, columns predicted ones.
        top5: Number of images whose class is among the five highest logits (all images, with five classes or fewer).
        predictions: What the model said of each image, in the order of the set.

    >>> scores = Evaluation(0.5, torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), top5=8)
    >>> scores.images, scores.accuracy, scores.top5_accuracy, scores.per_class_accuracy
    (8, 0.875, 1.0, [0.75, 1.0, None])
    """

    loss: float
    confusion: Tensor
    top5: int
    predictions: Predictions | None = None

    @property
    def images(self) -> int:
        """Number of images, each counted once."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the images whose class is predicted, 0..1."""
        return int(self.confusion.trace()) / self.images

    @property
    def top5_accuracy(self) -> float:
        """Share of all images whose class is among the five highest logits, 0..1."""
        return self.top5 / self.images

    def figures(self, averaged: Evaluation | None = None) -> dict[str, Any]:
        """Return what `result.json` holds of it, and the scores of the moving average where there is one."""
        ema = averaged and {"val_accuracy_ema": averaged.accuracy, "val_top5_ema": averaged.top5_accuracy}
        return {
            "val_accuracy": self.accuracy,
            "val_top5": self.top5_accuracy,
            **(ema or {}),
            "val_loss": self.loss,
            "images": self.images,
            "per_class_accuracy": self.per_class_accuracy,
        }

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Share of each class's images that are predicted correctly; None for a class without images."""
        correct, counts = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [right / count if count else None for right, count in zip(correct, counts, strict=True)]


@torch.no_grad()
def evaluate(
    model: nn.Module, images: DataLoader[Any], accelerator: Accelerator, numbers: Sequence[int] | None = None
) -> Evaluation:
    """Run `model` in evaluation mode over all images, those of the other processes included, each once.

    Args:
        model: (N, C, H, W) -> (N, classes); its training mode is restored.
        images: A loader over this process's share, of `make_loader`.
        accelerator: Device and precision; brings the rows of the processes together.
        numbers: For each class of the images its number among the model's. None: they are the same.
    """
    own = None if numbers is None else torch.tensor(numbers, device=accelerator.device)
    was_training = model.training
    model.eval()
    rows, batches, classes = [], 0, 0
    for batch, truth in images:
        batch, truth = batch.to(accelerator.device), truth.to(accelerator.device)
        with accelerator.autocast():
            logits = model(batch).float()
        truth = truth if own is None else own[truth]
        classes = logits.shape[1]
        rows.append(_rows(logits, truth))
        batches += 1
    for _ in range(len(images) - batches):
        # A sharded model computes on all processes or on none: those without images help the others.
        shape = images.dataset[0, 0][0].shape
        with accelerator.autocast():
            classes = model(torch.zeros(1, *shape, device=accelerator.device)).shape[1]
    model.train(was_training)
    # One row for each image of the set, zero for those of other processes: a sum puts all in the set's order.
    table = torch.zeros(len(images.dataset), _COLUMNS, device=accelerator.device)  # type: ignore[arg-type]
    if rows:
        places = [index for batch in images.batch_sampler for _, index in batch]  # type: ignore[union-attr]
        table[places] = torch.cat(rows)
    if accelerator.num_processes > 1:
        table = accelerator.reduce(table, "sum")
    loss, among5, labels, predicted, confidence, of_label = table.cpu().unbind(1)
    said = Predictions(labels.long(), predicted.long(), confidence.clone(), of_label.clone())
    return Evaluation(float(loss.double().mean()), said.confusion(classes), int(among5.double().sum()), said)


def _rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what is kept of each image, (N, _COLUMNS) float32, which holds classes exactly below 16.7 million."""
    said = Predictions.of(logits, labels)
    loss = F.cross_entropy(logits, labels, reduction="none")
    among5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(1)
    columns = (loss, among5, said.labels, said.predicted, said.confidence, said.of_label)
    return torch.stack([column.float() for column in columns], dim=1)
