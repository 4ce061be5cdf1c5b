"""How well a classifier does: exact counts over all images, on any number of processes."""

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
        top5: Number of images whose class is among the five highest logits (all images, with five classes or fewer).

    >>> scores = Evaluation(0.5, torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), top5=8)
    >>> scores.images, scores.accuracy, scores.top5_accuracy, scores.per_class_accuracy
    (8, 0.875, 1.0, [0.75, 1.0, None])
    """

    loss: float
    confusion: Tensor
    top5: int

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

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Share of each class's images that are predicted correctly; None for a class without images."""
        correct, counts = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [right / count if count else None for right, count in zip(correct, counts, strict=True)]


@torch.no_grad()
def evaluate(model: nn.Module, images: DataLoader, accelerator: Accelerator) -> Evaluation:
    """Run `model` in evaluation mode over all images, those of the other processes included, each once.

    Args:
        model: (N, C, H, W) -> (N, classes); its training mode is restored.
        images: A loader over this process's share, of `make_loader`.
        accelerator: Device and precision; adds up the counts of the processes.
    """
    was_training = model.training
    model.eval()
    losses, guesses, labels, among5 = [], [], [], []
    classes = 0
    for batch, truth in images:
        batch, truth = batch.to(accelerator.device), truth.to(accelerator.device)
        with accelerator.autocast():
            logits = model(batch).float()
        classes = logits.shape[1]
        losses.append(F.cross_entropy(logits, truth, reduction="none"))
        guesses.append(logits.argmax(1))
        labels.append(truth)
        among5.append((logits.topk(min(5, classes)).indices == truth[:, None]).any(1).sum())
    for _ in range(len(images) - len(losses)):
        # A sharded model computes on all processes or on none: those without images help the others.
        shape = images.dataset[0, 0][0].shape
        with accelerator.autocast():
            classes = model(torch.zeros(1, *shape, device=accelerator.device)).shape[1]
    model.train(was_training)
    nothing = torch.zeros(0, dtype=torch.int64)
    confusion = confusion_matrix(
        torch.cat(guesses).cpu() if guesses else nothing,
        torch.cat(labels).cpu() if labels else nothing,
        classes,
    )
    loss = float(torch.cat(losses).cpu().double().sum()) if losses else 0.0
    top5 = int(torch.stack(among5).sum()) if among5 else 0
    if accelerator.num_processes > 1:
        counts = torch.cat([confusion.flatten(), torch.tensor([top5])]).to(accelerator.device)
        counts = accelerator.reduce(counts, "sum").cpu()
        confusion, top5 = counts[:-1].view(classes, classes), int(counts[-1])
        total = torch.tensor(loss, dtype=torch.float64, device=accelerator.device)
        loss = float(accelerator.reduce(total, "sum"))
    return Evaluation(loss / int(confusion.sum()), confusion, top5)
