"""Scores of class activation maps: do they find the object, and does what they show matter to the network?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchcam import metrics

from cbam.data.inputs import input_form
from cbam.errors import CBAMError
from cbam.explain.cams import ScoresOnly, class_activation_maps
from cbam.explain.localised import Localised
from cbam.preserve_state import preserve_state

MEASURES: dict[str, tuple[str, bool]] = {
    "probability": ("probability of the class", True),
    "pointing": ("pointing game", True),
    "energy": ("energy in the object", True),
    "iou": ("IoU with the object", True),
    "average_drop": ("average drop", False),
    "increase": ("increase in confidence", True),
    "deletion": ("deletion", False),
    "insertion": ("insertion", True),
}
"""Measure -> (its name for people, whether more is better)."""
_AT_ONCE = 16
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over images, or the mean of paired differences, with its percentile interval over resampled images."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class MapScores:
    """Scores of the maps of networks on the same images.

    Attributes:
        values: by title of the network and measure (see `MEASURES`), one number for each image.
        flat: by title, how many maps were constant; they point nowhere and count as misses.
        chance: what a map without any information gets: the share of the object for "energy" and "pointing", and for
            "centre" the hits of the middle of the image.
        images: the names of those that were scored.
        left_out: how many images had no object left after the crop.
    """

    values: Mapping[str, Mapping[str, Values]]
    flat: Mapping[str, int]
    chance: Mapping[str, float]
    images: tuple[str, ...]
    left_out: int

    def interval(self, title: str, measure: str, to: str | None = None, resamples: int = 10_000) -> Interval:
        """Return the mean of a network's scores, or of its differences to another one on the same images.

        Args:
            title: of the network.
            measure: one of `MEASURES`.
            to: title of the other network.
            resamples: how many sets of as many images are drawn with replacement for the 95 % interval.
        """
        values = self.values[title][measure]
        return bootstrap(values if to is None else values - self.values[to][measure], resamples)

    def rows(self) -> list[tuple[str, str, bool, dict[str, tuple[Interval, Interval | None]]]]:
        """Return a row for each measure: key, name, whether more is better, and by title mean and difference."""
        first = next(iter(self.values))

        def cells(measure: str) -> dict[str, tuple[Interval, Interval | None]]:
            return {
                title: (
                    self.interval(title, measure),
                    None if title == first else self.interval(title, measure, first),
                )
                for title in self.values
            }

        return [(measure, name, more, cells(measure)) for measure, (name, more) in MEASURES.items()]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers: values of each image, means with intervals, differences to the first network."""
        first = next(iter(self.values))
        summary = {
            title: {
                measure: {
                    **vars(self.interval(title, measure)),
                    **({} if title == first else {"minus_first": vars(self.interval(title, measure, first))}),
                }
                for measure in found
            }
            for title, found in self.values.items()
        }
        return {
            "images": list(self.images),
            "left_out": self.left_out,
            "flat_maps": dict(self.flat),
            "chance": dict(self.chance),
            "summary": summary,
            "values": {
                title: {measure: row.tolist() for measure, row in found.items()}
                for title, found in self.values.items()
            },
        }


def score_maps(
    models: Mapping[str, nn.Module],
    images: Sequence[Localised],
    *,
    layer: str | None = None,
    method: str = "gradcam",
    threshold: float = 0.2,
    tolerance: float = 0.0,
    steps: int = 20,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> MapScores:
    """Score the class activation maps of classifiers on images in which it is known where the object is.

    Localisation: the pointing game (Zhang et al. 2016: is the maximum of the map on the object?), the share of the map
    that lies on the object (Wang et al. 2020), and the IoU of the map above a threshold with the object. Faithfulness,
    by torchcam: average drop and increase in confidence (Chattopadhay et al. 2018), deletion and insertion (Petsiuk et
    al. 2018). Maps are enlarged bilinearly to the input; a map is divided by its maximum, and unlike in torchcam its
    minimum is not subtracted before.

    Args:
        models: classifiers by title, which take images of one size.
        images: see `cbam.explain.localised.localised_images`.
        layer, method: of the maps, see `class_activation_maps`.
        threshold: for the IoU, as a share of the map's maximum.
        tolerance: pixels of the input by which the pointing game may miss; 15 in the original, on photographs.
        steps: in which deletion and insertion take the image away; each is one forward pass of the image.
        image_size, mean, std: of the input, see `cbam.explain`.

    Raises:
        CBAMError: no image has a part of its object within the centre crop; the map cannot be computed.
    """
    if not hasattr(metrics, "DeletionInsertionMetric"):
        raise CBAMError("scores of maps need torchcam 0.5 or later: pip install -U torchcam")
    forms = {title: input_form(model, image_size, mean, std)[0] for title, model in models.items()}
    if len({(form.size, form.channels) for form in forms.values()}) != 1:
        raise CBAMError(
            "networks that are compared must take images of one size: give one to all, image_size=..."
        )
    form = next(iter(forms.values()))
    seen = [(image, *image.cropped(form)) for image in images]
    kept = [(image, crop, region) for image, crop, region in seen if region.any()]
    if not kept:
        raise CBAMError(
            "no image has a part of its object within the centre crop: there is nothing to score."
        )
    regions = [region for _, _, region in kept]
    labels = [image.label for image, _, _ in kept]
    values: dict[str, dict[str, Values]] = {}
    flat: dict[str, int] = {}
    for title, model in models.items():
        rows, flat[title] = [], 0
        for start in range(0, len(kept), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            batch = forms[title].batch([crop for _, crop, _ in kept[part]])
            maps = class_activation_maps(model, layer, batch, labels[part], method)
            flat[title] += sum(maps.flat)
            heat = F.interpolate(maps.heat[:, None], batch.shape[2:], mode="bilinear", align_corners=False)[
                :, 0
            ]
            located = [
                _located(h.numpy(), r, threshold, tolerance) for h, r in zip(heat, regions[part], strict=True)
            ]
            faithful = _faithful(model, batch, maps.heat, labels[part], steps)
            rows += [
                {"probability": p, **where, **how}
                for p, where, how in zip(maps.probabilities, located, faithful, strict=True)
            ]
        values[title] = {measure: np.array([row[measure] for row in rows]) for measure in MEASURES}
    share = float(np.mean([region.mean() for region in regions]))
    middle = float(np.mean([region[form.size // 2, form.size // 2] for region in regions]))
    names = tuple(image.name for image, _, _ in kept)
    return MapScores(
        values, flat, {"energy": share, "pointing": share, "centre": middle}, names, len(seen) - len(kept)
    )


def bootstrap(values: Values, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return a mean and its 95 % percentile interval over images drawn with replacement.

    >>> bootstrap(np.ones(5))
    Interval(estimate=1.0, low=1.0, high=1.0)
    """
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 1000):
        drawn = generator.integers(0, len(values), (min(1000, resamples - start), len(values)))
        means[start : start + 1000] = values[drawn].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def _located(
    heat: NDArray[np.float32], region: NDArray[np.bool_], threshold: float, tolerance: float
) -> dict[str, float]:
    """Compare one map (H, W) with the pixels of the object."""
    total = float(heat.sum())
    if total == 0:  # a flat map points nowhere
        return {"pointing": 0.0, "energy": 0.0, "iou": 0.0}
    above = heat >= threshold * heat.max()
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    rows, columns = np.nonzero(region)
    distance = float(np.hypot(rows - y, columns - x).min())
    return {
        "pointing": float(distance <= tolerance),
        "energy": float(heat[region].sum()) / total,
        "iou": float((above & region).sum() / (above | region).sum()),
    }


class _GivenMaps:
    """What torchcam's metrics need of an extractor, with maps that are there already."""

    def __init__(self, model: nn.Module):
        self.model = ScoresOnly(model)
        self.maps: list[Tensor] = []

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        return self.maps

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> Any:
        return nullcontext()


def _faithful(
    model: nn.Module, batch: Tensor, heat: Tensor, labels: Sequence[int], steps: int
) -> list[dict[str, float]]:
    """Return average drop, increase, deletion and insertion of each image."""
    given: Any = _GivenMaps(model)
    softmax = partial(torch.softmax, dim=-1)
    drops = metrics.ClassificationMetric(given, softmax)
    changes = metrics.DeletionInsertionMetric(given, softmax, steps=steps)
    like = next(model.parameters(), None)
    if like is not None:
        batch, heat = batch.to(like.device, like.dtype), heat.to(like.device)
    found = []
    with torch.no_grad(), preserve_state(model):
        for image, map_, label in zip(batch, heat, labels, strict=True):
            given.maps = [map_[None].clone()]
            for metric in (drops, changes):
                metric.reset()
                metric.update(image[None], [int(label)])
            found.append(
                {
                    "average_drop": drops.summary()["avg_drop"],
                    "increase": drops.summary()["conf_increase"],
                    "deletion": changes.summary()["deletion_auc"],
                    "insertion": changes.summary()["insertion_auc"],
                }
            )
    return found
