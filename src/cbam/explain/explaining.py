"""What networks see in images: class activation maps, gates and probabilities, for one network or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cbam.attach.maps import AttentionMaps, attention_maps, sites_with_gates
from cbam.data.inputs import ImageSource, class_names_of, input_form, open_picture
from cbam.errors import CBAMError, nearest, unknown_name
from cbam.explain.cams import METHODS, ScoresOnly, class_activation_maps
from cbam.explain.explanation import Explanation
from cbam.explain.views import SiteGates, View
from cbam.preserve_state import preserve_state

_AT_ONCE = 16


def explain(
    model: nn.Module | Mapping[str, nn.Module],
    images: ImageSource | Sequence[ImageSource],
    *,
    label: int | str | Sequence[int] | None = None,
    layer: str | None = None,
    method: str = "gradcam",
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> Explanation:
    """Return where a classifier looks, what its gates do, and what it says, for one image or several.

    The networks are left as they are, in every respect; they run in evaluation mode.

    Args:
        model: a classifier, or several by title; they must have the same classes and take images of one size.
        images: files, PIL images, arrays (H, W, 3) or tensors (3, H, W); the short side is resized to 8/7 of the input
            size, and the centre is cropped. 16-bit, CMYK, transparent, rotated and animated images are taken as
            browsers show them (the first frame).
        label: the class to explain, by number or name, or a number for each image; None: the class that the first
            network predicts.
        layer: name of the module whose output the class activation map reads; None: the last map of each network.
        method: of the map, see `cbam.explain.cams.METHODS`.
        class_names: by default those saved with the network, or ImageNet's for 1,000 outputs.
        image_size, mean, std: of the input; by default those saved with the network, timm's or ImageNet's.
        names: of the images; by default those of their files.

    Raises:
        CBAMError: an image that cannot be read; networks that do not fit together; an unknown layer, method or class.

    >>> from cbam.models import build_model
    >>> seen = explain(build_model("resnet20_cbam", 10), np.zeros((40, 50, 3), np.uint8), image_size=32)
    >>> view = seen.views["CifarResNet"][0]
    >>> view.heat.shape, list(view.gates)[-1], view.gates["layer3.2.bn2"].channel.shape
    ((8, 8), 'layer3.2.bn2', (64,))
    """
    models = dict(model) if isinstance(model, Mapping) else {type(model).__name__: model}
    sources = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray, Tensor)) else list(images)
    if not models or not sources:
        raise CBAMError(f"nothing to explain: {len(models)} networks and {len(sources)} images.")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    forms = {title: input_form(each, image_size, mean, std) for title, each in models.items()}
    _check_same({title: (form.channels, form.size) for title, (form, _) in forms.items()})
    first, found = next(iter(forms.values()))
    names = _names(sources) if names is None else list(names)
    crops = [first.crop(open_picture(source, name)) for source, name in zip(sources, names, strict=True)]
    batches = {title: forms[title][0].batch(crops) for title in models}
    looks = {title: _look(each, batches[title]) for title, each in models.items()}
    widths = {title: scores.shape[1] for title, (scores, _) in looks.items()}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{title} {width}" for title, width in widths.items())
        raise CBAMError(f"networks that are compared need the same classes; outputs: {shown}.")
    leading = next(iter(models))
    classes = class_names_of(models[leading], class_names, widths[leading])
    labels = _labels(label, classes, looks[leading][0])
    views = {
        title: _views(each, batches[title], looks[title][1], layer, labels, method)
        for title, each in models.items()
    }
    return Explanation(
        tuple(names), tuple(crops), labels, classes, method,
        f"{first} ({found})",
        views,
    )  # fmt: skip


def _views(
    model: nn.Module,
    batch: Tensor,
    gates: Sequence[dict[str, SiteGates]],
    layer: str | None,
    labels: Sequence[int],
    method: str,
) -> list[View]:
    found = list[View]()
    for start in range(0, len(batch), _AT_ONCE):
        part = batch[start : start + _AT_ONCE]
        maps = class_activation_maps(model, layer, part, labels[start : start + _AT_ONCE], method)
        probabilities = maps.scores.softmax(1).numpy()
        found += [
            View(maps.heat[i].numpy(), maps.flat[i], maps.layer, probabilities[i], gates[start + i])
            for i in range(len(part))
        ]
    return found


def _look(model: nn.Module, batch: Tensor) -> tuple[Tensor, list[dict[str, SiteGates]]]:
    """Return the scores (N, K) of one forward pass and each image's gates, none where no attention tells any."""
    scores, gates = list[Tensor](), list[dict[str, SiteGates]]()
    tells = bool(sites_with_gates(model))
    with torch.no_grad(), preserve_state(model):
        for part in batch.split(_AT_ONCE):
            with attention_maps(model) if tells else nullcontext() as maps:
                scores.append(ScoresOnly(model)(_placed(part, model)).float().cpu())
            gates += [_of_image(maps, i) for i in range(len(part))]
    return torch.cat(scores), gates


def _of_image(maps: AttentionMaps | None, index: int) -> dict[str, SiteGates]:
    def of(gate: Tensor | None) -> Any:
        return None if gate is None else gate[index].squeeze(0).float().cpu().numpy()

    return {site: SiteGates(of(gates.channel), of(gates.spatial)) for site, gates in (maps or {}).items()}


def _placed(batch: Tensor, model: nn.Module) -> Tensor:
    like = next(model.parameters(), None)
    return batch if like is None else batch.to(like.device, like.dtype)


def _names(sources: Sequence[ImageSource]) -> list[str]:
    return [
        Path(source).name if isinstance(source, (str, Path)) else f"image {number}"
        for number, source in enumerate(sources, 1)
    ]


def _labels(
    label: int | str | Sequence[int] | None, classes: Sequence[str], scores: Tensor
) -> tuple[int, ...]:
    if label is None:
        return tuple(scores.argmax(1).tolist())
    if isinstance(label, str):
        if label not in classes:
            raise unknown_name("class", label, classes if len(classes) <= 20 else _close(label, classes))
        label = list(classes).index(label)
    labels = (label,) * len(scores) if isinstance(label, int) else tuple(label)
    wrong = [each for each in labels if not 0 <= each < len(classes)]
    if wrong or len(labels) != len(scores):
        raise CBAMError(
            f"label {wrong[0]} is not one of the network's {len(classes)} classes, 0 to {len(classes) - 1}."
            if wrong
            else f"{len(labels)} labels for {len(scores)} images."
        )
    return labels


def _close(label: str, classes: Sequence[str]) -> list[str]:

    return nearest(label, classes, count=8) or list(classes[:3])


def _check_same(forms: Mapping[str, tuple[int, int]]) -> None:
    if len(set(forms.values())) > 1:
        shown = ", ".join(f"{title} {c} x {size} x {size}" for title, (c, size) in forms.items())
        raise CBAMError(
            f"networks that are compared must take images of one size: {shown}. Give one to all: image_size=..."
        )
