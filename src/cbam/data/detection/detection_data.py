"""`DetectionData`: the images to train on and to validate, their classes, and what a run writes down of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cbam.data.detection.images import DetectionImages


@dataclass(frozen=True)
class DetectionData:
    """Images with objects to train on and to validate.

    Attributes:
        name: the folder's name.
        source: one sentence: where the images are from and how they are split.
        train: the images to train on, not augmented.
        validation: the images that validate.
        classes: names of the classes; label 1 is the first, 0 the background.
        category_ids: the set's own number of each class, as COCO's result files want them.
        has_masks: whether every object has an outline.
        notices: for the user, for example that boxes were clipped.
    """

    name: str
    source: str
    train: DetectionImages
    validation: DetectionImages
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool
    notices: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What two trainings must share to be comparable, with a hash of which image has which boxes."""
        digest = hashlib.sha256(self.train.digest() + self.validation.digest())
        return {
            "name": self.name,
            "classes": list(self.classes),
            "train_images": len(self.train),
            "val_images": len(self.validation),
            "train_objects": self.train.objects,
            "val_objects": self.validation.objects,
            "has_masks": self.has_masks,
            "annotations_sha256": digest.hexdigest(),
        }
