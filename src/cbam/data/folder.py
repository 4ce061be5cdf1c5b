"""A folder of images as a data set: checked, split if need be, decoded and transformed on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image as PILImage
from torchvision.transforms import v2

from cbam.data.addressing import Address, AddressedDataset, Item
from cbam.data.doctor import FolderReport, check_folder
from cbam.data.hashing import hash64
from cbam.data.image_data import ImageData
from cbam.data.pictures import open_image
from cbam.data.scan import Side, some
from cbam.data.split import balanced_subset, stratified_split
from cbam.errors import CBAMError, unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self

BAD_IMAGES = ("fail", "skip")
_RESIZE_TO_CROP = 256 / 224  # the usual evaluation: the short side to 256, then the centre 224


@dataclass(frozen=True)
class Preparation:
    """How an image file becomes an item: its size, normalisation on the 0..1 scale, and the largest image allowed."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixels: int


class FolderImages(AddressedDataset):
    """Images in files; training ones go through RandomResizedCrop and a flip, others are resized and centre-cropped.

    Args:
        folder: the folder that `names` are relative to.
        names: relative name of every image.
        labels: class of every image, as an index into `classes`.
        classes: names of the classes.
        preparation: how a file becomes an item.
        augment: whether to augment (training).
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        preparation: Preparation,
        *,
        augment: bool,
    ):
        self.folder = folder
        self.names = list(names)
        self.labels = list(labels)
        self.classes = tuple(classes)
        self.max_pixels = preparation.max_pixels
        self._mean = torch.tensor(preparation.mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(preparation.std, dtype=torch.float32).view(-1, 1, 1)
        size = preparation.size
        self._centre = v2.Compose([v2.Resize(round(size * _RESIZE_TO_CROP)), v2.CenterCrop(size)])
        self._augment = (
            v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]) if augment else None
        )

    def __getitem__(self, address: Address) -> Item:
        epoch, index = self._checked(address)
        if self._augment is None:
            image = self.picture(index)
        else:
            image = self._open(index)
            with _seeded(int(hash64(self.seed, epoch, index))):
                image = self._augment(image)
        pixels = v2.functional.pil_to_tensor(image).to(torch.float32)
        return pixels.div_(255).sub_(self._mean).div_(self._std), self.labels[index]

    def picture(self, index: int) -> PILImage.Image:
        """Return image `index` in RGB as the network sees it: resized and centre-cropped."""
        return self._centre(self._open(index))

    def identifier(self, index: int) -> str:
        """Return the file's name, relative to the folder."""
        return self.names[index]

    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""
        view = copy.copy(self)
        view.names = [self.names[index] for index in indices]
        view.labels = [self.labels[index] for index in indices]
        return view

    def _open(self, index: int) -> PILImage.Image:
        return open_image(self.folder / self.names[index], self.max_pixels)


def load_folder(
    root: Path,
    preparation: Preparation,
    *,
    limit_train: int | None,
    limit_val: int | None,
    val_fraction: float,
    split_seed: int,
    bad_images: str,
) -> ImageData:
    """Check the folder `root` and make data sets of it; the arguments are those of `load_data`.

    Raises:
        CBAMError: the doctor found what makes training impossible, or bad images while `bad_images` is "fail".
    """
    if bad_images not in BAD_IMAGES:
        raise unknown_name("bad_images", bad_images, BAD_IMAGES)
    report = check_folder(root, max_pixels=preparation.max_pixels)
    _refuse(report, bad_images)
    notices = list(report.notices)
    if report.bad:
        notices.append(
            f"{len(report.bad):,} bad images were left out. " + "; ".join(report.bad_lines()) + "."
        )
    train = _images(report, report.train, preparation, augment=True)
    val = _images(report, report.val or report.train, preparation, augment=False)
    how = f"{train.folder} trains, {val.folder} validates"
    if report.val is None:
        into = stratified_split(train.names, train.labels, val_fraction, split_seed)
        train, val = train.subset(into[0]), val.subset(into[1])
        how = f"{train.folder} is split by class and file name with split seed {split_seed}"
        if single := [name for label, name in enumerate(train.classes) if label not in val.labels]:
            notices.append(
                f"Classes with one image only, which trains and does not validate: {some(single)}."
            )
    if limit_train is not None:
        train = train.subset(balanced_subset(train.labels, limit_train, "limit_train"))
    if limit_val is not None:
        val = val.subset(balanced_subset(val.labels, limit_val, "limit_val"))
    return ImageData(
        name=root.resolve().name,
        source=f"{how}: {len(train):,} training and {len(val):,} validation images.",
        train=train,
        val=val,
        classes=train.classes,
        input_size=(3, preparation.size, preparation.size),
        mean=preparation.mean,
        std=preparation.std,
        notices=tuple(notices),
    )


def _images(report: FolderReport, side: Side, preparation: Preparation, *, augment: bool) -> FolderImages:
    classes = report.train.classes
    pairs = [(name, classes.index(of)) for of, names in report.good_images(side).items() for name in names]
    names, labels = zip(*pairs, strict=True)
    return FolderImages(side.folder, names, labels, classes, preparation, augment=augment)


def _refuse(report: FolderReport, bad_images: str) -> None:
    lines = list(report.errors)
    advice = ""
    if report.bad and bad_images == "fail":
        lines.append(f"{len(report.bad):,} of {report.image_count:,} images cannot be used:")
        lines += [f"  {line}" for line in report.bad_lines()]
        advice = "\nRepair or remove them, or leave them out by typing: --bad-images skip"
    if lines:
        raise CBAMError(f"{report.root} cannot be trained on as it is.\n" + "\n".join(lines) + advice)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # torchvision's transforms draw from torch's global CPU generator and take no other.
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
