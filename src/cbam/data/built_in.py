"""The built-in image sets, Fashion-MNIST and scikit-learn's digits, both held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from cbam.data import fashion_mnist
from cbam.data.augmentation import Augmentation, make_augmentation
from cbam.data.image_data import ImageData, checked_statistics
from cbam.data.memory import MemoryImages
from cbam.data.split import balanced_subset, stratified_split
from cbam.errors import MissingExtra

# Of the 1,797 images on the 0..1 scale.
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3759,)


@dataclass(frozen=True)
class RawImages:
    """Images as read: pixels (N, C, H, W) uint8 and labels, for training and validation."""

    name: str
    source: str
    train: tuple[torch.Tensor, list[int]]
    val: tuple[torch.Tensor, list[int]]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    notices: tuple[str, ...] = ()


def read_fashion_mnist(
    folder: Path | None, *, download: bool, val_fraction: float, split_seed: int
) -> RawImages:
    """Read Fashion-MNIST from the first location that has it, or else scikit-learn's digits, with a notice.

    Args:
        folder: an explicit folder, or none.
        download: whether a download may be tried.
        val_fraction: for the digits, should it come to that.
        split_seed: likewise.

    Raises:
        CBAMError: an explicit folder lacks files, or a file is damaged.
    """
    found = fashion_mnist.find_fashion_mnist(folder, download=download)
    if found.folder is None:
        digits = read_digits(val_fraction, split_seed)
        notice = (
            "THESE ARE NOT FASHION-MNIST: scikit-learn's digits (1,797 images of 8x8 pixels) stand in for it. "
            "To get it: apt-get install dataset-fashion-mnist, or --data fashion-mnist:FOLDER"
        )
        return replace(digits, notices=(*found.notices, notice))
    parts = fashion_mnist.read_fashion_mnist(found.folder)
    train, val = ((images, labels.tolist()) for images, labels in (parts["train"], parts["t10k"]))
    return RawImages(
        name="fashion-mnist",
        source=f"Fashion-MNIST from {found.how} ({found.folder}); its official test images validate",
        train=train,
        val=val,
        classes=fashion_mnist.CLASSES,
        mean=fashion_mnist.MEAN,
        std=fashion_mnist.STD,
        flip=True,
        notices=found.notices,
    )


def read_digits(val_fraction: float, split_seed: int) -> RawImages:
    """Read the digits that scikit-learn bundles: 1,797 8x8 grey pixels each; a mirrored digit is another sign."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("the data set 'digits'", "train", "scikit-learn") from error

    bundle = load_digits()
    # The set's grey values run from 0 to 16.
    images = torch.from_numpy(np.rint(bundle.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = [int(label) for label in bundle.target]
    names = [f"{label}/{index:04d}" for index, label in enumerate(labels)]
    train, val = (
        (images[indices], [labels[index] for index in indices])
        for indices in stratified_split(names, labels, val_fraction, split_seed)
    )
    return RawImages(
        name="digits",
        source=f"scikit-learn's bundled digits, split by class with split seed {split_seed}",
        train=train,
        val=val,
        classes=tuple(str(name) for name in bundle.target_names),
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
        flip=False,
    )


def in_memory(
    raw: RawImages,
    *,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    limit_train: int | None,
    limit_val: int | None,
    policy: str | None = None,
    flip: float | None = None,
) -> ImageData:
    """Make data sets of `raw`: limited and resized now, normalised on access.

    Args:
        raw: the images.
        image_size: height and width; None: as they are.
        mean, std: by which they are normalised; None: the set's own.
        limit_train, limit_val: how many images to keep.
        policy, flip: see `make_augmentation`.
    """
    augmentation = make_augmentation(1, policy, None, flip, mirror=raw.flip)
    mean, std = checked_statistics(mean or raw.mean, std or raw.std, channels=len(raw.mean))

    def side(part: tuple[torch.Tensor, list[int]], limit: int | None, name: str, train: bool) -> MemoryImages:
        images, labels = part
        if limit is not None:
            kept = balanced_subset(labels, limit, name)
            images, labels = images[kept], [labels[index] for index in kept]
        return MemoryImages(
            _resized(images, image_size),
            labels,
            raw.classes,
            mean=mean,
            std=std,
            augmentation=augmentation if train else Augmentation("none"),
        )

    train = side(raw.train, limit_train, "limit_train", True)
    val = side(raw.val, limit_val, "limit_val", False)
    channels, height, width = train.images.shape[1:]
    return ImageData(
        name=raw.name,
        source=f"{raw.source}: {len(train):,} training and {len(val):,} validation images.",
        train=train,
        val=val,
        classes=raw.classes,
        input_size=(channels, height, width),
        mean=mean,
        std=std,
        notices=raw.notices,
        resize=height,
        prepared=(augmentation.words, f"as they are, {height} x {width}"),
    )


def _resized(images: torch.Tensor, size: int | None, chunk: int = 1024) -> torch.Tensor:
    if size is None or images.shape[-2:] == (size, size):
        return images
    return torch.cat([transforms.resize(part, [size, size], antialias=True) for part in images.split(chunk)])
