"""The training of a detector: lists of images of any size, the detector's own losses, average precision."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cbam.data.detection import (
    DetectionData,
    DetectionImages,
    PreparedDetection,
    make_detection_loader,
)
from cbam.detect.evaluation import DetectionScores, evaluate_detector, make_evaluator
from cbam.detect.recipe import DetectTrainConfig
from cbam.errors import CBAMError
from cbam.train.task import Batch, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader


@dataclass
class Detection(Task[DetectTrainConfig, DetectionScores]):
    """Train a detector of torchvision's interface.

    Attributes:
        data: The images.
        metric: "coco", "voc07" or "voc".
        augmentation: Of the training images.
        sides: Shorter and longest side, where the augmentation needs them.
        masks: Whether the detector finds masks.
    """

    data: DetectionData
    metric: str
    augmentation: str
    sides: tuple[int, int]
    masks: bool = False

    def loaders(self, seed: int, rank: int, world: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return the loaders of one process; see `Task.loaders`."""
        recipe = self.recipe
        train, validation = self.prepared()
        if world > 1 and len(train) < recipe.batch_size:
            raise CBAMError(
                f"{len(train)} training images are less than one batch of {recipe.batch_size}, which {world} "
                "processes cannot share evenly. Give a smaller --batch-size"
            )
        load = partial(
            make_detection_loader,
            batch_size=recipe.batch_size,
            seed=seed,
            workers=recipe.workers,
            rank=rank,
            world=world,
        )
        drop_last = len(train) > recipe.batch_size
        return load(train, shuffle=True, drop_last=drop_last), load(validation, shuffle=False)

    def prepared(self) -> tuple[PreparedDetection, PreparedDetection]:
        """Return the training and the validation images as the detector takes them."""
        sides = {"image_size": self.sides[0], "max_size": self.sides[1]}
        # The detector itself draws one of several sides.
        augmentation = "flip" if self.augmentation == "multiscale" else self.augmentation
        train = PreparedDetection(_decoding(self.data.train, outlines=self.masks), augmentation, **sides)
        return train, PreparedDetection(_decoding(self.data.validation, outlines=False), None)

    def to_device(self, loaded: Any, device: torch.device) -> Batch:
        """Return the images and what the losses read of the targets."""
        images, targets = loaded
        names = ("boxes", "labels", *(["masks"] if self.masks else []))
        return Batch(
            [image.to(device, non_blocking=True) for image in images],
            [{name: target[name].to(device, non_blocking=True) for name in names} for target in targets],
        )

    def parts(self, batch: Batch, seed: int) -> list[Batch]:
        """Divide the images."""
        size = -(-len(batch) // self.recipe.accumulate)
        return [
            Batch(batch.images[start : start + size], batch.targets[start : start + size])
            for start in range(0, len(batch), size)
        ]

    def loss(self, net: nn.Module, part: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum of the detector's losses."""
        losses = torch.stack([value.float() for value in net(part.images, part.targets).values()])
        return losses.sum(), losses.new_zeros(())

    def network_inputs(self, batch: Batch, *, training: bool) -> tuple[Any, ...]:
        """Return the images, and in training the targets."""
        return (batch.images, batch.targets) if training else (batch.images,)

    def evaluate(
        self, model: nn.Module, images: DataLoader[Any], accelerator: Accelerator
    ) -> DetectionScores:
        """Return the average precision."""
        evaluator = make_evaluator(self.data, self.metric, masks=self.masks and self.metric == "coco")
        return evaluate_detector(model, images, evaluator, self.metric, accelerator)

    def score(self, scores: DetectionScores) -> float:
        """Return the average precision of boxes."""
        return scores.mean_ap

    def row(self, scores: DetectionScores, averaged: DetectionScores | None) -> dict[str, float]:
        """Return the figures."""
        row = scores.row()
        return {**row, "val_map_ema": averaged.mean_ap} if averaged else row


def _decoding(images: DetectionImages, *, outlines: bool) -> DetectionImages:
    """Return a view of the images that decodes outlines only where a detector needs them."""
    view = copy.copy(images)
    view.with_masks = images.with_masks and outlines
    return view
