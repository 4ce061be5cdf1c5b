"""The training of a network that says of each label whether an image has it: binary cross-entropy, mean AP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.evaluate.labels import LabelScores, label_scores
from cbam.train.classification import ImageTask
from cbam.train.config import TrainConfig
from cbam.train.task import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class LabelEvaluation:
    """Loss and scores of one model.

    Attributes:
        loss: Mean binary cross-entropy over images and labels, without weights.
        scores: Of each label.
        probabilities: Of each label for each image, (N, labels), in the order of the set; 0 for what is not a number.
        truth: Whether each image has the label, 0 or 1, (N, labels).
    """

    loss: float
    scores: LabelScores
    probabilities: Tensor
    truth: Tensor

    def figures(self, averaged: LabelEvaluation | None = None) -> dict[str, Any]:
        """Return what `result.json` holds of it, and the score of the moving average where there is one."""
        scores = self.scores
        return {
            "val_map": scores.mean_ap,
            **({} if averaged is None else {"val_map_ema": averaged.scores.mean_ap}),
            "val_f1": scores.macro_f1,
            "val_micro_f1": scores.micro_f1,
            "val_exact": scores.exact,
            "val_loss": self.loss,
            "images": len(self.truth),
            "per_class_ap": list(scores.average_precision),
            "per_class_precision": list(scores.precision),
            "per_class_recall": list(scores.recall),
            "per_class_f1": list(scores.f1),
            "label_images": list(scores.images),
            "label_predicted": list(scores.predicted),
        }


@dataclass
class MultiLabel(ImageTask[LabelEvaluation]):
    """Train a network (N, C, H, W) -> (N, labels) whose outputs are judged each for itself."""

    def parts(self, batch: Batch, seed: int) -> list[Batch]:
        """Divide the images."""
        count = self.recipe.accumulate
        chunks = (batch.images.chunk(count), batch.targets.chunk(count))
        return [Batch(*part) for part in zip(*chunks, strict=True)]

    def loss(self, net: nn.Module, part: Batch) -> tuple[Tensor, Tensor]:
        """Return the binary cross-entropy, and the number of images all of whose labels are right at one half."""
        logits = net(part.images).float()  # (N, labels)
        weight = None
        if self.recipe.class_weights == "balanced":
            weight = torch.tensor(self._weights, device=logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, part.targets, pos_weight=weight)
        return loss, ((logits.detach() >= 0) == (part.targets > 0)).all(1).sum()

    @cached_property
    def _weights(self) -> list[float]:
        """Images without each label over images with it: both sides of a label weigh the same; 1 where all have it."""
        count, labels = len(self.data.train), self.data.train.labels
        having = torch.bincount(
            torch.tensor([label for of in labels for label in of], dtype=torch.int64),  # type: ignore[attr-defined]
            minlength=len(self.data.classes),
        )
        return [(count - with_it) / with_it or 1.0 for with_it in having.tolist()]

    def evaluate(
        self, model: nn.Module, images: DataLoader[Any], accelerator: Accelerator
    ) -> LabelEvaluation:
        """Return loss and average precision."""
        return evaluate_labels(model, images, accelerator)

    def score(self, scores: LabelEvaluation) -> float:
        """Return the mean average precision."""
        return scores.scores.mean_ap

    def row(self, scores: LabelEvaluation, averaged: LabelEvaluation | None) -> dict[str, float]:
        """Return loss, mean average precision, F1 and exact matches."""
        figures = scores.figures()
        row = {name: figures[name] for name in ("val_loss", "val_map", "val_f1", "val_exact")}
        return {**row, "val_map_ema": averaged.scores.mean_ap} if averaged else row

    def training_row(self, correct: float, seen: float) -> dict[str, float]:
        """Return the share of training images, augmented as they were, all of whose labels were right."""
        return {"train_exact": correct / seen}

    def problem(self, scores: LabelEvaluation) -> str:
        """Name a loss that is not finite."""
        return "" if math.isfinite(scores.loss) else f"the validation loss is {scores.loss}"


@torch.no_grad()
def evaluate_labels(
    model: nn.Module,
    images: DataLoader[Any],
    accelerator: Accelerator,
    numbers: Sequence[int] | None = None,
    outputs: int | None = None,
) -> LabelEvaluation:
    """Run `model` in evaluation mode over all images, those of the other processes included, each once.

    Args:
        model: (N, C, H, W) -> (N, labels), logits; its training mode is restored.
        images: A loader over this process's share, of `make_loader`, whose targets are (N, labels) of 0 and 1.
        accelerator: Device and precision; brings the rows of the processes together.
        numbers: For each label of the images its number among the model's. None: they are the same.
        outputs: Of the model; no image has those that are no label of the images. None: as many as labels.
    """
    was_training = model.training
    model.eval()
    dataset: Any = images.dataset
    own = list(range(len(dataset.classes)) if numbers is None else numbers)
    labels, shape = outputs or len(own), dataset[0, 0][0].shape
    # One row for each image of the set, zero for those of other processes: a sum puts all in the set's order.
    table = torch.zeros(len(dataset), 2 * labels, device=accelerator.device)
    rows = []
    for batch, truth in images:
        with accelerator.autocast():
            logits = model(batch.to(accelerator.device)).float()
        has = torch.zeros_like(logits)
        has[:, own] = truth.to(accelerator.device)
        rows.append(torch.cat([logits, has], dim=1))
    for _ in range(len(images) - len(rows)):
        # A sharded model computes on all processes or on none: those without images help the others.
        with accelerator.autocast():
            model(torch.zeros(1, *shape, device=accelerator.device))
    model.train(was_training)
    if rows:
        table[[index for batch in images.batch_sampler for _, index in batch]] = torch.cat(rows)  # type: ignore[union-attr]
    if accelerator.num_processes > 1:
        table = accelerator.reduce(table, "sum")
    logits, truth = table.cpu().double().chunk(2, dim=1)
    loss = float(F.binary_cross_entropy_with_logits(logits, truth))
    finite = torch.nan_to_num(logits.sigmoid(), nan=0.0)
    return LabelEvaluation(loss, label_scores(finite, truth), finite, truth)


def check_recipe(recipe: TrainConfig, where: str) -> None:
    """Refuse options that are for one class an image.

    Raises:
        CBAMError: The first of them is named.
    """
    for name in ("mixup", "cutmix", "label_smoothing"):
        if given := getattr(recipe, name):
            raise CBAMError(
                f"--{name.replace('_', '-')} {given} is for images of one class each, and in {where} they have several "
                "labels. Leave it out"
            )
