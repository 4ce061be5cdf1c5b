"""What a file has to say so that it can be used alone: classes, and how a picture becomes an input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.export.detector import OneImage
from cbam.version import __version__

CLASS_NAMES, PREPROCESSING, TASK, MADE_BY = "class_names", "preprocessing", "task", "made_by"
DETECTION = "detection"  # a task


def describe(model: nn.Module, example: Tensor, class_names: Sequence[str] | None = None) -> dict[str, str]:
    """Return what is known of a network, as strings, lists and mappings as JSON.

    Args:
        model: with `cbam_config` where it was saved by this library.
        example: a batch of it.
        class_names: instead of those that were saved.

    Returns:
        `made_by`; and, as far as they are known, `class_names` (a list), `task` and `preprocessing`: the mapping with
        `channels`, `size` (H, W) after the centre crop, `resize` of the short side before it, `interpolation`, and
        `mean` and `std` of the channels on the 0..1 scale. A detector has no `resize` and no crop: pictures are resized
        to `size`.

    Raises:
        CBAMError: no class names but a single string.
    """
    if isinstance(class_names, str):
        raise CBAMError(f'class_names expects a sequence such as ["cat", "dog"], got {class_names!r}.')
    saved = getattr(model, "cbam_config", None)
    found = {MADE_BY: f"torch-cbam {__version__}"}
    names = class_names if class_names is not None else getattr(saved, "class_names", None)
    if names is not None:
        found[CLASS_NAMES] = json.dumps([str(name) for name in names])
    if isinstance(model, OneImage):
        found[TASK] = DETECTION
        found[PREPROCESSING] = json.dumps(_preprocessing_of_detector(example))
    elif saved is not None:
        found[TASK] = saved.task
        if example.dim() == 4 and example.shape[1] in (1, 3):
            found[PREPROCESSING] = json.dumps(preprocessing(model, example.shape[-2:]))
    return found


def _preprocessing_of_detector(example: Tensor) -> dict[str, Any]:
    """Return the preprocessing of a detector, whose own first step normalizes: a picture resized, values 0..1."""
    channels = example.shape[1]
    return {
        "channels": channels,
        "size": list(example.shape[-2:]),
        "resize": None,
        "interpolation": "bilinear",
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }


def preprocessing(model: nn.Module, size: Sequence[int]) -> dict[str, Any]:
    """Return how a picture becomes an input of `size` (H, W), see `describe`."""
    from cbam.data.inputs import input_form  # needs Pillow and torchvision, which a network alone does not
    from cbam.data.prepared import short_side

    form, _ = input_form(model)
    short = form.resize
    if short is None or tuple(size) != (form.size, form.size):
        short = round(min(size) * (short or short_side(form.size)) / form.size)
    return {
        "channels": form.channels,
        "size": list(size),
        "resize": short,
        "interpolation": form.interpolation,
        "mean": list(form.mean),
        "std": list(form.std),
    }


def read(found: Mapping[str, str]) -> dict[str, Any]:
    """Return metadata as values; what is not ours is left out.

    >>> read({"class_names": '["cat", "dog"]', "task": "multiclass", "AOTI_DEVICE_KEY": "cpu"})
    {'class_names': ['cat', 'dog'], 'task': 'multiclass'}
    """
    own = (CLASS_NAMES, PREPROCESSING, TASK, MADE_BY)
    return {
        name: json.loads(found[name]) if name in (CLASS_NAMES, PREPROCESSING) else found[name]
        for name in own
        if name in found
    }
