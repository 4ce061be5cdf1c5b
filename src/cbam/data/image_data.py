"""`ImageData`: training and validation images, and what must be known about them."""

from __future__ import annotations

from dataclasses import dataclass

from cbam.data.addressing import AddressedDataset


@dataclass(frozen=True)
class ImageData:
    """Training and validation images and what must be known about them.

    Attributes:
        name: "fashion-mnist", "digits", or the folder's name.
        source: one sentence: where the images were found and how they are split.
        train: the training images, augmented.
        val: the validation images, not augmented.
        classes: names of the classes.
        input_size: (C, H, W) of every item.
        mean: per-channel mean that items are normalised by, on the 0..1 scale.
        std: per-channel standard deviation that items are normalised by, on the 0..1 scale.
        notices: what the user must be told, for example that files were skipped.
    """

    name: str
    source: str
    train: AddressedDataset
    val: AddressedDataset
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notices: tuple[str, ...] = ()
