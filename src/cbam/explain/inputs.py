"""Images as people have them, and what a network needs to see of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cbam.attach.graph.probe import dims_of
from cbam.data.image_data import ImageData
from cbam.data.load import IMAGENET_MEAN, IMAGENET_STD, is_built_in, load_data
from cbam.data.pictures import open_image, upright_rgb
from cbam.data.prepared import centre_crop, normalised, short_side
from cbam.errors import CBAMError
from cbam.models.classifier import last_layer
from cbam.models.registry import made_for
from cbam.ops.dims import batched

_SAVED = ("input_size", "mean", "std", "resize", "interpolation")
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
ImageSource: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"


@dataclass(frozen=True)
class InputForm:
    """The images that a network takes.

    Args:
        channels: 3, or 1 for grey images.
        size: height and width after the centre crop.
        mean, std: of the channels on the 0..1 scale.
        resize: of the short side before the crop; None: 8/7 of `size`.
        interpolation: how it is resized, by torchvision's name.
        known: whether mean and standard deviation are the network's own; else they are usual ones.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"
    known: bool = True

    def crop(self, picture: Image.Image) -> Image.Image:
        """Return the part of a picture that the network sees, in RGB or grey, before it is normalised."""
        transform = centre_crop(self.size, self.resize, self.interpolation)
        cropped: Image.Image = transform(picture.convert("RGB" if self.channels == 3 else "L"))
        return cropped

    def batch(self, crops: Sequence[Image.Image]) -> Tensor:
        """Return crops as normalised (N, C, size, size)."""
        return torch.stack([normalised(crop, self.mean, self.std) for crop in crops])

    def load(self, data: str, **selection: Any) -> ImageData:
        """Load a set of images as the network takes them: whatever scores, explains or exports it sees the same.

        A built-in set has a size and statistics of its own; the network's come first.

        Args:
            data: as for `cbam.data.load_data`.
            selection: its arguments that say which images.

        Raises:
            CBAMError: see `load_data`, or images of other channels.
        """
        statistics: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if not is_built_in(data):
            how: dict[str, Any] = {
                "resize": self.resize,
                "interpolation": self.interpolation,
                "channels": self.channels,
            }
            return load_data(data, image_size=self.size, augment="none", **statistics, **how, **selection)
        if self.channels != 1:
            raise CBAMError(
                f"the network takes images of {self.channels} channels, and those of {data} are grey."
            )
        return load_data(data, image_size=self.size, **(statistics if self.known else {}), **selection)

    def __str__(self) -> str:
        short = short_side(self.size) if self.resize is None else self.resize
        return (
            f"short side to {short} pixels, centre crop to {self.channels} × {self.size} × {self.size}; normalised"
            f" by mean {', '.join(f'{value:g}' for value in self.mean)} and standard deviation"
            f" {', '.join(f'{value:g}' for value in self.std)}"
        )


def input_form(
    model: nn.Module,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[InputForm, str]:
    """Return the images that a model takes, and where that was found.

    What is not given comes from the folder that the model was loaded from, or from timm's settings of the network;
    otherwise it is ImageNet's.

    Raises:
        CBAMError: images of neither one nor three channels; a network for signals or volumes.
    """
    config = getattr(model, "cbam_config", None)
    said: Any = {name: getattr(config, name, None) for name in _SAVED}
    found = "as saved with the network"
    if not any(said.values()):
        said, found = (
            _from_timm(getattr(model, "pretrained_cfg", None) or {}),
            "timm's settings of the network",
        )
    size = said.get("input_size")
    dims, first = dims_of(model)
    if dims != 2:
        raise CBAMError(
            f"{type(model).__name__} begins with {type(first).__name__} and takes maps {batched(dims)}, not pictures."
            " What its gates do in an input x: with cbam.attention_maps(model) as maps: model(x)"
        )
    channels = int(size[0]) if size else (3 if first is None else first.in_channels)
    if channels not in (1, 3):
        raise CBAMError(f"the network takes images of {channels} channels; pictures have 3, or 1 in grey.")
    if not any(said.get(name) for name in ("input_size", "mean", "std")):
        found = "ImageNet's, as nothing else is known"
    if any(given is not None for given in (image_size, mean, std)):
        found = "as given"
    usual = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    backbone = getattr(config, "backbone", None)
    crop = int(size[-1]) if size else 224 if backbone is None else made_for(backbone.name)[1][-1]
    # Grey images are those of the built-in sets, which are not cropped.
    resize = said.get("resize") or (short_side(crop) if channels == 3 else crop)
    form = InputForm(
        channels,
        image_size or crop,
        _row("mean", mean or said.get("mean") or usual[0], channels),
        _row("std", std or said.get("std") or usual[1], channels),
        resize if image_size in (None, crop) else round(image_size * resize / crop),
        said.get("interpolation") or "bilinear",
        known=bool(mean or said.get("mean")),
    )
    return form, found


def _from_timm(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's settings by the names of ours: its images are a share of the resized ones."""
    size, share = said.get("input_size"), said.get("crop_pct")
    resize = int(size[-1] / share) if size and share else None  # rounded down, as timm does
    how = said.get("interpolation")
    return {**said, "resize": resize, "interpolation": how if how in _INTERPOLATIONS else None}


def open_picture(source: ImageSource, name: str) -> Image.Image:
    """Return an image upright in RGB: from a file, a PIL image, an array (H, W[, 3 or 4]) or a tensor (1 or 3, H, W).

    Arrays and tensors hold integers of 8 or 16 bits, or numbers from 0 to 1.

    Raises:
        CBAMError: a file that is no image or has too many pixels; an array of another form.

    >>> open_picture(np.zeros((4, 6), np.uint8), "array").size
    (6, 4)
    """
    if isinstance(source, (str, Path)):
        return open_image(Path(source))
    if isinstance(source, Image.Image):
        return upright_rgb(source, name)
    if isinstance(source, Tensor):
        array = source.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    elif isinstance(source, np.ndarray):
        array = source
    else:
        raise CBAMError(
            f"an image is a file, a PIL image, an array or a tensor; given {type(source).__name__}."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise CBAMError(f"{name}: expected an image (H, W), (H, W, 3) or (H, W, 4); given {array.shape}.")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise CBAMError(f"{name}: numbers with a fraction must lie between 0 and 1. Divide by 255 first.")
        array = np.round(255 * array).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise CBAMError(f"{name}: expected uint8, uint16 or numbers from 0 to 1; given {array.dtype}.")
    return upright_rgb(Image.fromarray(array), name)


def class_names_of(model: nn.Module, given: Sequence[str] | None, outputs: int) -> tuple[str, ...]:
    """Return the names of a model's classes: as given, as saved with it, ImageNet's for 1,000 outputs, or numbers.

    Raises:
        CBAMError: another number of names than outputs.
    """
    names = given if given is not None else getattr(getattr(model, "cbam_config", None), "class_names", None)
    if names is None:
        return imagenet_names() if outputs == 1000 else tuple(f"class {index}" for index in range(outputs))
    if len(names) != outputs:
        raise CBAMError(f"{len(names)} class names for a network with {outputs} outputs.")
    return tuple(map(str, names))


def imagenet_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes.

    >>> imagenet_names()[285]
    'Egyptian cat'
    """
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def read_class_names(file: Path) -> tuple[str, ...]:
    """Read class names from a text file, one in each line in the order of the outputs, or from a JSON file.

    JSON may hold a list, or an object {number: name}, whose names may be the last of a list, as in Keras' file.

    Raises:
        CBAMError: the file cannot be read or has another form.
    """
    try:
        text = file.read_text(encoding="utf-8")
        content: Any = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise CBAMError(f"cannot read class names from {file}: {error}") from None
    if isinstance(content, Mapping) and set(content) == {str(index) for index in range(len(content))}:
        content = [content[str(index)] for index in range(len(content))]
        content = [name[-1] if isinstance(name, list) and name else name for name in content]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise CBAMError(f"{file} holds no class names: expected a name in each line, or a list in JSON.")
    while content and not content[-1].strip():
        content.pop()
    if not content:
        raise CBAMError(f"{file} holds no class names: it is empty.")
    return tuple(name.strip() for name in content)


def outputs_of(model: nn.Module) -> int | None:
    """Return the width of the last layer; None where there is none."""
    found = last_layer(model)
    return (
        None if found is None else getattr(found[1], "out_features", getattr(found[1], "out_channels", None))
    )


def _row(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    row = tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)
    if len(row) != channels or (name == "std" and min(row) <= 0):
        above = " above 0" if name == "std" else ""
        raise CBAMError(
            f"{name} needs one number{above} or {channels}, one for each channel; given {tuple(values)}."
        )
    return row
