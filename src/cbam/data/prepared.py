"""From an image file to an item: decoded, augmented in training, resized and cropped otherwise, normalised."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torchvision.transforms import v2

from cbam.data.augmentation import SMALL, Augmentation
from cbam.data.epoch_index import EpochIndex, EpochIndexDataset, Item
from cbam.data.hashing import hash64
from cbam.data.image_data import ImageData
from cbam.data.seeded import seeded
from cbam.data.split import balanced_subset
from cbam.errors import CBAMError

if TYPE_CHECKING:
    from PIL.Image import Image


_RESIZE_TO_CROP = 256 / 224  # as usual for evaluation: short side to 256, then a centre crop of 224


@dataclass(frozen=True)
class Preparation:
    """How an image file becomes an item.

    Args:
        size: height and width of what the network sees.
        resize: the short side before the centre is cropped, in validation.
        mean, std: of the channels on the 0..1 scale.
        max_pixels: the largest image allowed.
        augmentation: of training images.
        interpolation: how validation pictures are resized, by torchvision's name.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixels: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        """3, or 1 for grey images."""
        return len(self.mean)

    @property
    def words(self) -> tuple[str, str]:
        """How images are prepared in training and in validation, for the plan of a run."""
        validation = f"short side to {self.resize}, the {self.size} x {self.size} centre"
        return self.augmentation.words, validation


@dataclass(frozen=True)
class Selection:
    """Which images train and which validate; the fields are arguments of `load_data`."""

    whole: bool = field(default=False, kw_only=True)

    limit_train: int | None = None
    limit_val: int | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    bad_images: str = "fail"


class PreparedImages(EpochIndexDataset):
    """Images of any size from anywhere; training ones are augmented, others resized and cropped.

    Args:
        classes: names of the classes.
        preparation: how an image becomes an item.
        augment: whether to augment (training).
    """

    def __init__(self, classes: Sequence[str], preparation: Preparation, *, augment: bool):
        self.classes = tuple(classes)
        self.max_pixels = preparation.max_pixels
        self._preparation = preparation
        size, resize = preparation.size, preparation.resize
        self._centre = centre_crop(size, resize, preparation.interpolation)
        self._augment = preparation.augmentation.transform(size, resize) if augment else None

    @abc.abstractmethod
    def _open(self, index: int) -> Image:
        """Return image `index` in RGB, as large as it is stored."""

    def __getitem__(self, at: EpochIndex) -> Item:
        epoch, index = self._checked(at)
        return self._item(epoch, index, self._open(index))

    def picture(self, index: int) -> Image:
        """Return image `index` in RGB as the network sees it in validation."""
        picture: Image = self._centre(self._coloured(self._open(index)))
        return picture

    def _coloured(self, image: Image) -> Image:
        """Return an image in RGB as the network takes it: in grey for one channel."""
        return image if self._preparation.channels == 3 else image.convert("L")

    def _item(self, epoch: int, index: int, image: Image) -> Item:
        return self._transformed(epoch, index, image), self._target(index)

    def _target(self, index: int) -> Any:
        return int(self.labels[index])

    def _transformed(self, epoch: int, index: int, image: Image) -> torch.Tensor:
        image = self._coloured(image)
        if self._augment is None:
            image = self._centre(image)
        else:
            with seeded(int(hash64(self.seed, epoch, index))):
                image = self._augment(image)
        return normalised(image, self._preparation.mean, self._preparation.std)


def centre_crop(size: int, resize: int | None = None, interpolation: str = "bilinear") -> v2.Compose:
    """Return the transform of images that are not augmented: the short side to `resize`, then a centre crop.

    Args:
        size: height and width of the crop.
        resize: of the short side; None: 8/7 of `size`.
        interpolation: by torchvision's name.
    """
    short = short_side(size) if resize is None else resize
    return v2.Compose([v2.Resize(short, v2.InterpolationMode(interpolation)), v2.CenterCrop(size)])


def short_side(size: int) -> int:
    """Return to how many pixels the short side is resized before a crop of `size`, if nothing else is said.

    >>> short_side(224)
    256
    """
    return round(size * _RESIZE_TO_CROP)


def normalised(image: Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return an image as (C, H, W) float32: its pixels on the 0..1 scale, minus the mean, over the deviation."""
    pixels = v2.functional.pil_to_tensor(image).to(torch.float32)
    channels = [torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std)]
    return pixels.div_(255).sub_(channels[0]).div_(channels[1])


def make_resize(size: int, resize: int | None) -> int:
    """Return how long the short side becomes before the centre is cropped: as given, or by the image size.

    Args:
        size: height and width of what the network sees.
        resize: as typed; None: the size itself below `SMALL` pixels, so that nothing but the ends of the long side is
            cut off, else 256/224 of it.

    Raises:
        CBAMError: a short side below the size.

    >>> make_resize(32, None), make_resize(224, None), make_resize(224, 240)
    (32, 256, 240)
    """
    if resize is None:
        return size if size < SMALL else short_side(size)
    if resize < size:
        raise CBAMError(
            f"--resize {resize} is less than the image size, {size}: the short side is resized before a square of "
            f"{size} is cropped. Type --resize {size} or more"
        )
    return resize


def prepared_data(
    name: str,
    how: str,
    train: PreparedImages,
    val: PreparedImages,
    preparation: Preparation,
    selection: Selection,
    notices: Sequence[str] = (),
    task: str = "multiclass",
) -> ImageData:
    """Limit both sides and join them.

    Args:
        name: what the set is called.
        how: where it was found and how it was split.
        train: the training images.
        val: the validation images.
        preparation: how they become items.
        selection: the limits.
        notices: for the user.
        task: see `ImageData`.

    Raises:
        CBAMError: a limit below the number of classes.
    """
    if selection.limit_train is not None:
        train = train.subset(balanced_subset(train.strata, selection.limit_train, "limit_train"))
    if selection.limit_val is not None:
        val = val.subset(balanced_subset(val.strata, selection.limit_val, "limit_val"))
    training = f"{len(train):,} training and " if len(train) else ""
    return ImageData(
        name=name,
        source=f"{how}: {training}{len(val):,} {'validation ' if training else ''}images.",
        train=train,
        val=val,
        classes=train.classes,
        input_size=(preparation.channels, preparation.size, preparation.size),
        mean=preparation.mean,
        std=preparation.std,
        resize=preparation.resize,
        interpolation=preparation.interpolation,
        prepared=preparation.words,
        task=task,
        notices=tuple(notices),
    )
