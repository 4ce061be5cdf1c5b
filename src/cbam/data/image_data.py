"""`ImageData`: training and validation images with their classes, size and normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cbam.data.epoch_index import EpochIndexDataset
from cbam.errors import CBAMError


@runtime_checkable
class Digested(Protocol):
    """A set with a fast hash of which image has which label, for millions of images."""

    def digest(self) -> bytes:
        """Return the hash."""


@dataclass(frozen=True)
class ImageData:
    """Training and validation images with their classes, size and normalisation.

    Attributes:
        name: "fashion-mnist", "digits", or the folder's name.
        source: one sentence: where the images are from and how they are split.
        train: the training images, augmented.
        val: the validation images, not augmented.
        classes: names of the classes.
        input_size: (C, H, W) of every item.
        mean: per-channel mean that items are normalised by, on the 0..1 scale.
        std: per-channel standard deviation that items are normalised by, on the 0..1 scale.
        notices: for the user, for example that files were skipped.
        resize: to how many pixels the short side of a picture is resized before the centre crop; None: not known.
        interpolation: how, by torchvision's name.
    """

    name: str
    source: str
    train: EpochIndexDataset
    val: EpochIndexDataset
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notices: tuple[str, ...] = ()
    resize: int | None = None
    interpolation: str = "bilinear"

    @property
    def identity(self) -> dict[str, Any]:
        """What two trainings must share to be comparable, with a hash of which image has which label."""
        digest = hashlib.sha256()
        for side in (self.train, self.val):
            if isinstance(side, Digested):
                digest.update(side.digest())
                continue
            for index, label in enumerate(side.labels):
                digest.update(f"{side.identifier(index)}\0{label}\n".encode(errors="surrogateescape"))
        return {
            "name": self.name,
            "classes": list(self.classes),
            "train_images": len(self.train),
            "val_images": len(self.val),
            "input_size": list(self.input_size),
            "labels_sha256": digest.hexdigest(),
        }


def checked_statistics(
    mean: Sequence[float], std: Sequence[float], *, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `mean` and `std` as tuples of `channels` floats; a single value is used for all channels.

    Raises:
        CBAMError: another number of values, or values that cannot normalise images on the 0..1 scale.
    """
    mean, std = (
        tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)
        for values in (mean, std)
    )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise CBAMError(
                f"{name} needs {channels} value(s), one per channel; given {len(values)}: {values}."
            )
        if not all(0 <= value <= 1 for value in values):
            raise CBAMError(f"{name} is on the 0..1 scale, given {values}. Divide by 255 first.")
    if min(std) == 0:
        raise CBAMError(f"std must be above 0, given {std}.")
    return mean, std
