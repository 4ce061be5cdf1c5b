"""Judge a detector on all images of a set: COCO's or VOC's average precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cbam.data.detection import DetectionData
from cbam.evaluate.detection import CocoEvaluator, VocEvaluator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

Evaluator = CocoEvaluator | VocEvaluator


@dataclass(frozen=True)
class DetectionScores:
    """What an evaluator says of a detector.

    Attributes:
        metric: "coco", "voc07" or "voc".
        content: Of the evaluator's `compute`.
        evaluator: Holds the detections.
    """

    metric: str
    content: Mapping[str, Any]
    evaluator: Evaluator

    @property
    def images(self) -> int:
        """Number of images, each counted once."""
        return len(self.evaluator.truth)

    def figures(self, kind: str = "boxes") -> dict[str, float]:
        """Return the figures of boxes or masks as fractions; those without any object to find are 0.

        Args:
            kind: "boxes" or "masks".
        """
        found = self.content[kind]["figures"] if self.metric == "coco" else {"AP50": self.content["mAP"]}
        return {name: 0.0 if value is None else float(value) for name, value in found.items()}

    @property
    def mean_ap(self) -> float:
        """The main figure: COCO's AP of boxes, VOC's mAP."""
        return self.figures()["AP" if self.metric == "coco" else "AP50"]

    def row(self) -> dict[str, float]:
        """Return the figures that a row of the metrics holds."""
        boxes = self.figures()
        row = {"val_map": self.mean_ap, "val_ap50": boxes["AP50"]}
        if "AP75" in boxes:
            row["val_ap75"] = boxes["AP75"]
        if "masks" in self.content:
            masks = self.figures("masks")
            row |= {"val_mask_map": masks["AP"], "val_mask_ap50": masks["AP50"]}
        return row

    def per_class(self) -> dict[str, float | None]:
        """Return AP by class, None for a class without objects."""
        rows = self.content["boxes"]["per_class"] if self.metric == "coco" else self.content["per_class"]
        return {row["class"]: row["AP"] for row in rows}


def make_evaluator(data: DetectionData, metric: str, *, masks: bool) -> Evaluator:
    """Return an evaluator of the validation images that has seen none.

    Args:
        data: The set.
        metric: "coco", "voc07" or "voc".
        masks: Whether masks count too, with "coco".

    Raises:
        MissingExtra: A package that the metric needs is not installed.
    """
    records, classes = data.validation.records, data.classes
    if metric == "coco":
        return CocoEvaluator(records, classes, masks=masks)
    return VocEvaluator(records, classes, points=11 if metric == "voc07" else "all")


@torch.no_grad()
def evaluate_detector(
    model: nn.Module, images: DataLoader[Any], evaluator: Evaluator, metric: str, accelerator: Accelerator
) -> DetectionScores:
    """Run a detector in evaluation mode over all images, those of the other processes included, each once.

    Args:
        model: A detector on its device; its training mode is restored.
        images: A loader over this process's share of the validation images.
        evaluator: Gets the detections.
        metric: Of the evaluator.
        accelerator: Device and precision.
    """
    was_training = model.training
    model.eval()
    for pictures, targets in images:
        batch = [as_float(image, accelerator.device) for image in pictures]
        with accelerator.autocast():
            found = model(batch)
        for target, detections in zip(targets, found, strict=True):
            evaluator.update(target["image_id"], detections)
    model.train(was_training)
    evaluator.gather()
    return DetectionScores(metric, evaluator.compute(), evaluator)


def as_float(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return an image (3, H, W) as a plain float tensor in 0..1 on the device."""
    image = image.as_subclass(torch.Tensor).to(device, non_blocking=True)
    return image if image.is_floating_point() else image.float().div_(255)
