"""How well a classifier does on the validation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.evaluate.metrics import confusion_matrix

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Evaluation:
    """Loss and confusion of one model.

    Attributes:
        loss: Mean cross-entropy, without label smoothing.
        confusion: (classes, classes) int64; rows are true classes, columns predicted ones.

    >>> scores = Evaluation(0.5, torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    >>> scores.accuracy, scores.per_class_accuracy
    (0.875, [0.75, 1.0, None])
    """

    loss: float
    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """Share of all images that were recognised, 0..1."""
        return int(self.confusion.trace()) / int(self.confusion.sum())

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Share of each class's images that were recognised; None for a class without images."""
        hits, counts = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]


@torch.no_grad()
def evaluate(model: nn.Module, images: DataLoader, accelerator: Accelerator) -> Evaluation:
    """Run `model` in evaluation mode over all `images`, those of the other processes included, each once.

    Args:
        model: (N, C, H, W) -> (N, classes); its training mode is given back.
        images: A loader that `accelerator` prepared.
        accelerator: Says how to cast, and gathers what the processes computed.
    """
    was_training = model.training
    model.eval()
    logits, labels = [], []
    for batch, truth in images:
        with accelerator.autocast():
            output = model(batch)
        output, truth = accelerator.gather_for_metrics((output.float(), truth))
        logits.append(output.cpu())
        labels.append(truth.cpu())
    model.train(was_training)
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    confusion = confusion_matrix(all_logits.argmax(1), all_labels, all_logits.shape[1])
    return Evaluation(F.cross_entropy(all_logits, all_labels).item(), confusion)
