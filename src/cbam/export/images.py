"""Pictures for an export: to calibrate int8 with, and to measure what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.data import make_loader
from cbam.data.epoch_index import EpochIndexDataset
from cbam.data.image_data import ImageData
from cbam.data.inputs import input_form
from cbam.data.pictures import SUFFIXES, open_image
from cbam.detect.config import DetectionSetConfig
from cbam.documents import read_yaml
from cbam.errors import CBAMError

_SELECTION = ("labels", "limit_val", "val_fraction", "bad_images")  # of a run's settings


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a network and of its exported form on the same images.

    Attributes:
        images: how many.
        eager, exported: share of them whose class is predicted, 0..1; of several labels an image, all of them.
        same: share for which the two predict the same.
        score: what is right, in words.
    """

    images: int
    eager: float
    exported: float
    same: float
    score: str = "top-1"

    def __str__(self) -> str:
        return (
            f"{self.score} {self.eager:.2%} in eager mode, {self.exported:.2%} exported"
            f" ({self.exported - self.eager:+.2%}) on {self.images:,} images; the same class for {self.same:.2%}"
        )


def calibration_images(model: nn.Module, source: str, size: tuple[int, ...], limit: int) -> Tensor:
    """Return pictures as a network sees them, (N, C, H, W), spread over a folder or a set.

    Args:
        model: knows its preprocessing.
        source: a folder of pictures, in folders of its own or not; or the name of a set, whose training images count.
        size: (C, H, W) of the input.
        limit: at most so many.

    Raises:
        CBAMError: there is no picture, or one cannot be read.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return _items(input_form(model, size[-1])[0].load(source, download=False).train, limit)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise CBAMError(f"--calibrate {source} holds no pictures ({', '.join(SUFFIXES)}).")
    form, _ = input_form(model, size[-1])
    chosen = [files[index] for index in _spread(len(files), limit)]
    return form.batch([form.crop(open_image(path)) for path in chosen])


def detection_images(run: Path, given: str | None, sides: tuple[int, ...], count: int = 4) -> Tensor | None:
    """Return validation images for a detector, (N, 3, H, W) in 0..1, resized; None where the run's own are gone.

    Args:
        run: folder of `cbam detect train`.
        given: a set such as "coco:FOLDER" instead of the run's own.
        sides: (H, W).
        count: at most so many.

    Raises:
        CBAMError: a given set cannot be used.
    """
    settings = _settings(run)
    if given is None and "data" not in settings:
        return None
    names = ("data", "val_fraction", "limit_val", "bad_data") if given is None else ()
    known = {name: settings[name] for name in names if name in settings} or {"data": given}
    try:
        images = DetectionSetConfig(**known).load().validation
    except CBAMError:
        if given is not None:
            raise
        return None
    chosen = [images[index][0].as_subclass(Tensor) for index in _spread(len(images), count)]
    return torch.cat([F.interpolate(image[None].float() / 255, sides, mode="bilinear") for image in chosen])


def validation_data(
    model: nn.Module, run: Path | None, given: str | None, size: tuple[int, ...], limit: int | None
) -> ImageData | None:
    """Return the images on which a run validated, as its network takes them; None where nothing says which.

    Args:
        model: knows its preprocessing.
        run: folder of `cbam train` or one inside it.
        given: a set or folder instead of the run's own.
        size: (C, H, W) of the network's input.
        limit: at most so many images, equally many of each class.

    Raises:
        CBAMError: the images are gone.
    """
    settings = _settings(run)
    if given is not None and settings.get("data") != given:
        settings = {"data": given}
    if "data" not in settings:
        return None
    chosen = {name: settings[name] for name in _SELECTION if settings.get(name) is not None}
    if limit is not None:
        chosen["limit_val"] = min(limit, chosen.get("limit_val") or limit)
    return input_form(model, size[-1])[0].load(settings["data"], **chosen)


def accuracy(
    model: nn.Module, exported: Callable[[Tensor], tuple[Tensor, ...]], data: ImageData, batch_size: int = 64
) -> Accuracy:
    """Return the accuracy of a classifier and of its exported form on validation images.

    Args:
        model: in evaluation mode.
        exported: of `cbam.export.load`.
        data: the images.
        batch_size: images at a time.
    """
    right, right_exported, same, images = 0, 0, 0, 0
    several = data.task == "multilabel"
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for batch, labels in make_loader(data.val, batch_size=batch_size, seed=0, shuffle=False):
        with torch.no_grad():
            expected = _decided(model(batch.to(device)), several)
        found = _decided(exported(batch)[0], several)
        truth = labels.long().reshape(len(labels), -1)
        right += int((expected == truth).all(1).sum())
        right_exported += int((found == truth).all(1).sum())
        same += int((expected == found).all(1).sum())
        images += len(labels)
    shares = (right / images, right_exported / images, same / images)
    return Accuracy(images, *shares, "all labels right" if several else "top-1")


def _decided(scores: Tensor, several: bool) -> Tensor:
    """Return the class of each image, (N, 1), or whether it has each label, (N, labels)."""
    return (scores >= 0).long().cpu() if several else scores.argmax(1, keepdim=True).cpu()


def _settings(run: Path | None) -> dict[str, Any]:
    for folder in () if run is None else (run, run.parent, run.parent.parent):
        if (folder / "config.yaml").is_file():
            found = read_yaml(folder / "config.yaml")
            return found if isinstance(found, dict) else {}
    return {}


def _items(images: EpochIndexDataset, limit: int) -> Tensor:
    return torch.stack([images[0, index][0] for index in _spread(len(images), limit)])


def _spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` of `count` positions, evenly spread.

    >>> _spread(10, 3), _spread(2, 3)
    ([0, 3, 6], [0, 1])
    """
    chosen = min(count, limit)
    return [index * count // chosen for index in range(chosen)]
