"""The detector of a run as it is before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from cbam.attach.sites.select import split_sites
from cbam.attach.variants import parse_variant
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.unpacking import unpack
from cbam.detect.config import DetectorConfig
from cbam.models.detection import build_detector
from cbam.models.matched_control import match_parameters
from cbam.nn.registry import attention_kind
from cbam.train.seeding import derive_seed, forked_rng

# Parts of a detector that no classifier has.
_PARTS = ("roi_heads.", "rpn.", "head.classification_head.")


def detector_arguments(
    config: DetectorConfig, attention: str, reduction_ratio: int | None, classes: int
) -> dict[str, Any]:
    """Return the arguments of `build_detector` without the weights, as numbers and text: a saved detector holds them.

    Args:
        config: Of the run.
        attention: A name for `parse_variant`, with attention or without.
        reduction_ratio: Of the attention, unless its name has one.
        classes: Number of classes.
    """
    variant = parse_variant(attention)
    found: dict[str, Any] = {"name": config.model, "classes": classes}
    if variant.attention is not None:
        options = dict(variant.options)
        if reduction_ratio is not None and attention_kind(variant.attention).takes("reduction_ratio"):
            options = {"reduction_ratio": reduction_ratio, **options}
        init = variant.attach_arguments(fine_tuning=config.fine_tuning)["init"]
        found |= {"attention": variant.attention, "attention_options": options, "init": init}
        found["sites"] = config.sites if config.sites == "backbone" else split_sites([config.sites])
    if config.norm == "auto":
        found["norm"] = "frozen" if config.fine_tuning else "batch"
    else:
        found["norm"] = config.norm
    for name, value, default in (
        ("trainable_layers", config.trainable_layers, None),
        ("width", config.width, 1.0),
    ):
        if value != default:
            found[name] = value
    return {**found, **config.more_options()}


def build(
    config: DetectorConfig,
    attention: str,
    seed: int,
    classes: int,
    *,
    reduction_ratio: int | None = None,
    widened_to: int | None = None,
) -> nn.Module:
    """Return the detector; its first weights depend on the seed alone, and without attention they are the same.

    Args:
        config: Of the run.
        attention: A name for `parse_variant`.
        seed: Of the weights.
        classes: Number of classes.
        reduction_ratio: Of the attention.
        widened_to: Number of parameters to which the detector is widened, as the control of a comparison.

    Raises:
        CBAMError: The detector, its options, its weights, the sites for the attention or a control of that size do not
            exist.
    """
    arguments = detector_arguments(config, attention, reduction_ratio, classes)
    if config.weights is not None:
        arguments["weights" if is_detector(config.weights) else "weights_backbone"] = config.weights
    with forked_rng(derive_seed(seed, "backbone")):
        model = build_detector(**arguments)
    if widened_to is not None:
        with forked_rng(derive_seed(seed, "control")):
            match_parameters(model, widened_to)
    return model


def is_detector(weights: Path) -> bool:
    """Whether a file holds a whole detector, not a classifier.

    Raises:
        CBAMError: There is no such file, or it holds no weights.
    """
    names = unpack(look_at(weights)).shapes
    return any(name.startswith(_PARTS) for name in names)
