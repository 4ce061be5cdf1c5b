"""The commands that train one network of a comparison alone, with the same result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cbam.attach.variants import ALONE, CONTROL, matched_by_control, parse_variant
from cbam.detect.config import DetectRunConfig
from cbam.errors import CBAMError
from cbam.nn.registry import attention_kind
from cbam.train.batch_size import AUTO
from cbam.train.config import TrainRunConfig

# What a run says for itself, and what is decided by the variant.
_OWN = {"attention", "seed", "output", "overwrite", "config", "save_every", "keep", "track"}
_OF_ATTENTION = ("sites", "replace", "reduction_ratio", "gate_lr_scale", "gate_weight_decay")
_TYPED = {"imports": "import"}


def train_commands(
    settings: Mapping[str, Any], variants: Sequence[str], parameters: Mapping[str, int]
) -> dict[str, list[str]]:
    """Return what to type to train each variant alone; with `--seed N` it is the network of that seed.

    Args:
        settings: Of the comparison, as its `config.yaml` holds them.
        variants: Those to train.
        parameters: Of the variants; a control is left out where the number it was made to match is not known.

    >>> settings = {"data": "digits", "model": "resnet18", "epochs": 3, "reduction_ratio": 8}
    >>> for words in train_commands(settings, ["none", "cbam:k3", "control"], {"cbam:k3": 9999}).values():
    ...     print(*words)
    cbam train --data digits --model resnet18 --attention none --epochs 3
    cbam train --data digits --model resnet18 --attention cbam:k3 --epochs 3 --reduction-ratio 8
    cbam train --data digits --model resnet18 --attention control --epochs 3 --widened-to 9999
    """
    if not all(isinstance(settings.get(name), str) for name in ("data", "model")):
        return {}  # written by hand
    form, verb = (
        (DetectRunConfig, "detect train") if "detector_options" in settings else (TrainRunConfig, "train")
    )
    found = {}
    for variant in variants:
        more = {}
        try:
            if variant == CONTROL:
                more = {"widened_to": parameters[matched_by_control(variants)]}
            found[variant] = ["cbam", *verb.split(), *_words(form, {**settings, **more}, variant)]
        except (CBAMError, TypeError, ValueError, KeyError, StopIteration):
            continue  # settings of another version, or an attention whose module is not imported
    return found


def _words(form: type, settings: Mapping[str, Any], attention: str) -> Iterator[str]:
    yield from ("--data", str(settings["data"]), "--model", str(settings["model"]), "--attention", attention)
    usual = _defaults(form) | _computed(form, settings)
    skipped = {"data", "model", *_OWN, *_without_effect(attention)}
    for name, default in usual.items():
        value = settings.get(name, default)
        if name in skipped or _text(value) == _text(default):
            continue
        if (name, value) == ("batch_size", AUTO):
            value = "auto"
        option = f"--{_TYPED.get(name, name).replace('_', '-')}"
        if isinstance(default, bool):
            yield option if value else option.replace("--", "--no-", 1)
        elif isinstance(default, tuple):
            yield from (option, *(value.split(",") if isinstance(value, str) else map(str, value)))
        else:
            yield from (option, str(value))


def _defaults(form: type) -> dict[str, Any]:
    """Return the defaults of a form's options and of its recipe's."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(form):
        if dataclasses.is_dataclass(item.default_factory):
            found |= _defaults(item.default_factory)
        else:
            found[item.name] = None if item.default is dataclasses.MISSING else item.default
    return found


def _computed(form: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that stand for None in the settings: they follow from other options."""
    start = {name: settings[name] for name in ("data", "model", "pretrained") if settings.get(name)}
    if settings.get("weights"):
        start["weights"] = Path(settings["weights"])
    train: Any = next(item.default_factory for item in dataclasses.fields(form) if item.name == "train")
    rates = {name: settings[name] for name in ("optimizer", "batch_size") if name in settings}
    plain = form(**start, attention="none", train=train(**rates))
    usual = plain.resolved()
    given = {name: settings[name] for name in ("image_size", "augment") if settings.get(name) is not None}
    # How images are prepared follows from their size and the policy.
    prepared = dataclasses.replace(plain, **given).resolved() if "augment" in usual else usual
    return {
        "lr": plain.peak_lr(),
        "reduction_ratio": 16,
        **{name: usual[name] for name in ("image_size", "augment", "metric") if name in usual},
        **{name: prepared[name] for name in ("resize", "crop", "flip") if name in prepared},
    }


def _without_effect(attention: str) -> tuple[str, ...]:
    """Return the options that this attention does not read, or sets itself."""
    if attention in ALONE:
        return _OF_ATTENTION
    variant = parse_variant(attention)
    takes = "reduction_ratio" in attention_kind(variant.attention or "").options
    return () if takes and "reduction_ratio" not in dict(variant.options) else ("reduction_ratio",)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
