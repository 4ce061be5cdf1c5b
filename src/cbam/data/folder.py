"""A folder of images as a data set: checked, split if needed, decoded and transformed on access."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cbam.data.doctor import FolderReport, check_folder
from cbam.data.image_data import ImageData
from cbam.data.pictures import open_image
from cbam.data.prepared import Preparation, PreparedImages, Selection, prepared_data
from cbam.data.scan import Side, some
from cbam.data.split import stratified_split
from cbam.errors import CBAMError

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self

BAD_IMAGES = ("fail", "skip")


class FolderImages(PreparedImages):
    """Images in files.

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
        super().__init__(classes, preparation, augment=augment)
        self.folder = folder
        self.names = list(names)
        self.labels = list(labels)

    def identifier(self, index: int) -> str:
        """Return the file's name, relative to the folder."""
        return self.names[index]

    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""
        view = copy.copy(self)
        view.names = [self.names[index] for index in indices]
        view.labels = [self.labels[index] for index in indices]
        return view

    def _open(self, index: int) -> Image:
        return open_image(self.folder / self.names[index], self.max_pixels)


def load_folder(
    root: Path,
    preparation: Preparation,
    selection: Selection,
) -> ImageData:
    """Check the folder `root` and make data sets of it.

    Args:
        root: train/ and val/, or a folder for each class.
        preparation: how a file becomes an item.
        selection: which images train and which validate.

    Raises:
        CBAMError: the doctor found problems that prevent training, or bad images while `bad_images` is "fail".
    """
    report = check_folder(root, max_pixels=preparation.max_pixels)
    refuse(report, selection.bad_images, one_class=selection.whole)
    notices = list(report.notices)
    if report.bad:
        notices.append(
            f"{len(report.bad):,} bad images were left out. " + "; ".join(report.bad_lines()) + "."
        )
    train = _images(report, report.train, preparation, augment=True)
    val = _images(report, report.val or report.train, preparation, augment=False)
    how = f"{train.folder} trains, {val.folder} validates"
    if report.val is None and selection.whole:
        train, how = train.subset(()), f"all of {val.folder}"
    elif report.val is None:
        into = stratified_split(train.names, train.labels, selection.val_fraction, selection.split_seed)
        train, val = train.subset(into[0]), val.subset(into[1])
        how = f"{train.folder} is split by class and file name with split seed {selection.split_seed}"
        if single := [name for label, name in enumerate(train.classes) if label not in val.labels]:
            notices.append(
                f"Classes with one image only, which trains and does not validate: {some(single)}."
            )
    return prepared_data(
        root.resolve().name,
        how,
        train,
        val,
        preparation,
        selection,
        notices=notices,
    )


def labelled_images(report: FolderReport, side: Side) -> list[tuple[str, int]]:
    """Return (relative name, label) of every usable image of `side`, in file order."""
    label_of = {name: label for label, name in enumerate(report.train.classes)}
    return [(name, label_of[of]) for of, names in report.good_images(side).items() for name in names]


def _images(report: FolderReport, side: Side, preparation: Preparation, *, augment: bool) -> FolderImages:
    names, labels = zip(*labelled_images(report, side), strict=True)
    return FolderImages(side.folder, names, labels, report.train.classes, preparation, augment=augment)


def refuse(report: FolderReport, bad_images: str, *, one_class: bool = False) -> None:
    """Raise a `CBAMError` that lists everything that prevents training with this `bad_images`.

    Args:
        report: of the doctor.
        bad_images: see `load_data`.
        one_class: whether a folder with a single class will do, as it does for an evaluation.
    """
    lines = list(report.side_errors if one_class and len(report.train.classes) == 1 else report.errors)
    advice = ""
    if report.bad and bad_images == "fail":
        lines.append(f"{len(report.bad):,} of {report.image_count:,} images cannot be used:")
        lines += [f"  {line}" for line in report.bad_lines()]
        advice = "\nRepair or remove them, or leave them out by typing: --bad-images skip"
    if lines:
        use = "evaluated" if one_class else "trained"
        raise CBAMError(f"{report.root} cannot be {use} on as it is.\n" + "\n".join(lines) + advice)
