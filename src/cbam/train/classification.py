"""The training of a classifier: cross-entropy, mixup, accuracy; and what it shares with that of several labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.data.balanced import class_weights
from cbam.data.batches import make_loader
from cbam.errors import CBAMError
from cbam.train.config import TrainConfig
from cbam.train.evaluation import Evaluation, evaluate
from cbam.train.mixing import Mixing
from cbam.train.task import LAYOUT, Batch, Scores, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from cbam.data.image_data import ImageData


@dataclass
class ImageTask(Task[TrainConfig, Scores]):
    """The training of a network that judges whole images.

    Attributes:
        data: Training and validation images.
    """

    data: ImageData

    def loaders(self, seed: int, rank: int, world: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the loaders of one process; see `Task.loaders`."""
        recipe, data = self.recipe, self.data
        if world > 1 and len(data.train) < recipe.batch_size:
            raise CBAMError(
                f"{len(data.train)} training images are less than one batch of {recipe.batch_size}, which {world} "
                "processes cannot share evenly. Give a smaller --batch-size"
            )
        load = partial(
            make_loader,
            batch_size=recipe.batch_size,
            seed=seed,
            workers=recipe.workers,
            rank=rank,
            world=world,
        )
        # A last, smaller batch would weigh its images more; a set smaller than one batch is all there is.
        drop_last = len(data.train) > recipe.batch_size
        balanced_by = data.train.strata if recipe.sampler == "balanced" else None
        train = load(data.train, shuffle=True, drop_last=drop_last, balanced_by=balanced_by)
        return train, load(data.val, shuffle=False)

    def to_device(self, loaded: Any, device: torch.device) -> Batch:
        """Return the images (N, C, H, W) and the labels, (N,) or (N, labels)."""
        images, labels = loaded
        images = images.to(device, non_blocking=True, memory_format=LAYOUT)
        labels = labels.to(device, non_blocking=True)
        return Batch(images, labels, labels)

    def network_inputs(self, batch: Batch, *, training: bool) -> tuple[Any, ...]:
        """Return the images."""
        return (batch.images,)


@dataclass
class Classification(ImageTask[Evaluation]):
    """Train a classifier, (N, C, H, W) -> (N, classes)."""

    _mixing: Mixing = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self._mixing = Mixing(len(self.data.classes), mixup=recipe.mixup, cutmix=recipe.cutmix)

    def parts(self, batch: Batch, seed: int) -> list[Batch]:
        """Mix the images, where the recipe says so, and divide them."""
        images, targets = self._mixing(batch.images, batch.targets, seed=seed)
        count = self.recipe.accumulate
        chunks = (images.chunk(count), targets.chunk(count), batch.truth.chunk(count))
        return [Batch(*part) for part in zip(*chunks, strict=True)]

    def loss(self, net: nn.Module, part: Batch) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the number of correct predictions."""
        logits = net(part.images).float()  # (N, classes)
        smoothing = self.recipe.label_smoothing
        if self.recipe.class_weights == "none":
            loss = F.cross_entropy(logits, part.targets, label_smoothing=smoothing)
        else:  # over the number of images, not the sum of their weights: parts of a batch add up to the batch
            weight = torch.tensor(self._weights, device=logits.device)
            total = F.cross_entropy(logits, part.targets, weight, reduction="sum", label_smoothing=smoothing)
            loss = total / len(part)
        return loss, (logits.detach().argmax(1) == part.truth).sum()

    @cached_property
    def _weights(self) -> list[float]:
        labels = torch.as_tensor(self.data.train.labels)
        return class_weights(labels.bincount(minlength=len(self.data.classes)).tolist())

    def evaluate(self, model: nn.Module, images: DataLoader[Any], accelerator: Accelerator) -> Evaluation:
        """Return loss and confusion."""
        return evaluate(model, images, accelerator)

    def score(self, scores: Evaluation) -> float:
        """Return the accuracy."""
        return scores.accuracy

    def row(self, scores: Evaluation, averaged: Evaluation | None) -> dict[str, float]:
        """Return loss and accuracies."""
        row = {"val_loss": scores.loss, "val_accuracy": scores.accuracy, "val_top5": scores.top5_accuracy}
        return {**row, "val_accuracy_ema": averaged.accuracy} if averaged else row

    def training_row(self, correct: float, seen: float) -> dict[str, float]:
        """Return the accuracy on the training images, augmented as they were."""
        return {"train_accuracy": correct / seen}

    def problem(self, scores: Evaluation) -> str:
        """Name a loss that is not finite."""
        return "" if math.isfinite(scores.loss) else f"the validation loss is {scores.loss}"
