"""Grad-CAM of the same images for several networks: overlays and a manifest in one folder."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from os import getpid
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from cbam.errors import CBAMError, unknown_name
from cbam.explain.cams import ClassActivationMaps, class_activation_maps
from cbam.explain.overlay import overlay


class PictureData(Protocol):
    """What `gradcam_pictures` needs of a dataset: labels, tensors by (epoch, index), and pictures."""

    labels: list[int]

    def __getitem__(self, item: tuple[int, int], /) -> tuple[Tensor, int]:
        """Return the normalised tensor (C, H, W) and the label."""

    def picture(self, index: int, /) -> Image.Image:
        """Return the image as the network sees it, before normalisation."""


def gradcam_pictures(
    models: Mapping[str, nn.Module],
    layer: str,
    dataset: PictureData,
    classes: Sequence[str],
    out_dir: Path,
    *,
    count: int = 8,
    seed: int | None = None,
) -> None:
    """Draw Grad-CAM for the true class over the same images for every model; write PNG files and `pictures.json`.

    The images are chosen by a rule: the first image of each of the first `count` classes, in file order. The folder
    is replaced as a whole. A model with non-finite values gets no overlays but a note in the manifest, so one broken
    network does not cost the others their pictures.

    Args:
        models: variant -> trained classifier; unchanged afterwards.
        layer: name of the module whose output Grad-CAM uses, in every model.
        dataset: validation images.
        classes: class names, in the order of the labels.
        out_dir: the folder to write.
        count: how many classes to show.
        seed: the seed that these models were trained with; goes into the manifest.

    Raises:
        CBAMError: there is no image or no model, or a model has no such layer.
    """
    chosen = first_of_each_class(dataset.labels, min(count, len(classes)))
    if not chosen or not models:
        raise CBAMError(f"nothing to draw: {len(chosen)} images and {len(models)} models")
    for model in models.values():
        names = [name for name, _ in model.named_modules() if name]
        if layer not in names:
            raise unknown_name("layer", layer, names)
    images = torch.stack([dataset[(0, index)][0] for index in chosen])
    labels = [int(dataset.labels[index]) for index in chosen]
    maps, notes = _maps(models, layer, images, labels)
    manifest: dict[str, Any] = {
        "rule": f"the first validation image of each of the first {len(chosen)} classes, in file order",
        "layer": layer,
        "seed": seed,
        "map_size": list(next(iter(maps.values())).heat.shape[1:]) if maps else None,
        "notes": notes,
        "images": [],
    }
    with replacing(Path(out_dir)) as fresh:
        for row, index in enumerate(chosen):
            entry = _draw(row, dataset.picture(index), maps, classes, fresh)
            manifest["images"].append(
                {"index": index, "label": labels[row], "class": classes[labels[row]], **entry}
            )
        (fresh / "pictures.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` unless the block raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{getpid()}.new")
    for leftover in folder.parent.glob(f".{folder.name}.*.new"):  # from a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        fresh.mkdir()
        yield fresh
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def first_of_each_class(labels: Sequence[int], count: int) -> list[int]:
    """Return the index of the first image of each class below `count`; a class without an image is left out.

    >>> first_of_each_class([1, 0, 0, 3, 1], 3)
    [1, 0]
    """
    first: dict[int, int] = {}
    for index, label in enumerate(labels):
        first.setdefault(label, index)
    return [first[label] for label in range(count) if label in first]


def _maps(
    models: Mapping[str, nn.Module], layer: str, images: Tensor, labels: Sequence[int]
) -> tuple[dict[str, ClassActivationMaps], dict[str, str]]:
    maps, notes = {}, {}
    for variant, model in models.items():
        try:
            maps[variant] = class_activation_maps(model, layer, images, labels)
        except CBAMError as error:
            notes[variant] = str(error)
    return maps, notes


def _draw(
    row: int,
    picture: Image.Image,
    maps: Mapping[str, ClassActivationMaps],
    classes: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    original = f"image-{row}.png"
    picture.save(folder / original)
    variants = {}
    for variant, result in maps.items():
        name = f"image-{row}-{variant.replace(':', '-')}.png"
        overlay(picture, result.heat[row].numpy()).save(folder / name)
        variants[variant] = {
            "overlay": name,
            "probability": result.probabilities[row],
            "predicted": classes[result.predicted[row]],
            "flat": result.flat[row],
        }
    return {"original": original, "variants": variants}
