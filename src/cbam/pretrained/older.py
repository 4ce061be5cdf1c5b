"""Networks in folders of runs from before each of them had a config.json: their form is in the run's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from cbam.attach import attach
from cbam.attach.sites.select import split_sites
from cbam.attach.variants import CONTROL, matched_by_control, parse_variant
from cbam.checkpoints import tensors_file
from cbam.data.load import is_built_in
from cbam.documents import read_json, read_yaml
from cbam.errors import CBAMError
from cbam.models import build_model, match_parameters
from cbam.models.own import is_own
from cbam.nn.registry import attention_kind
from cbam.pretrained.config import FILE, Config, read_config
from cbam.pretrained.places import SETTINGS, Place, find_network
from cbam.pretrained.saving import describe_network

_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked", "gate_scale")
_OPTIONS = ("preset", "reduction_ratio", "kernel_size")


def rebuild(place: Place, backbone: nn.Module | None = None) -> tuple[nn.Module, Config]:
    """Return the network of a run's checkpoint or cell, with new weights, and what its config.json would say.

    Args:
        place: with a run.
        backbone: the network without attention; None: the run's settings name it.

    Raises:
        CBAMError: the run's files do not say it, or it is a network of the user's own, which has to be given.
    """
    assert place.run is not None
    try:
        settings, data = read_yaml(place.run / SETTINGS), read_json(place.run / "data.json")
        name, attention = settings["model"], _attention(settings, place)
        size, classes = tuple(data["input_size"]), tuple(data["classes"])
        mean, std = (_statistics(place, data, what) for what in ("mean", "std"))
        built_in = is_built_in(str(settings["data"]))
    except (KeyError, TypeError) as error:
        raise CBAMError(
            f"{place.weights} has no config.json beside it, and the files of the run in {place.run} do not say what"
            f" network it is of ({type(error).__name__}: {error}). Name it: --model NAME"
        ) from None
    model = backbone
    if model is None:
        if is_own(name):
            raise CBAMError(
                f"{place.weights} is of {name}, your own code, which a file does not run. Type: --model {name}"
            )
        model = build_model(name, len(classes), in_channels=size[0])
    widened_to = None
    if attention == CONTROL:
        widened_to = _target_of_control(settings, place.run)
        match_parameters(model, widened_to)
    elif isinstance(attention, dict):
        attach(model, sites=split_sites([settings["sites"]]), input_size=size, **attention)
    return model, describe_network(
        model, None if backbone is not None else name, class_names=classes, input_size=size, mean=mean, std=std,
        resize=data.get("resize") or (size[-1] if built_in else None), widened_to=widened_to,
    )  # fmt: skip


def _statistics(place: Place, data: dict[str, Any], what: str) -> Any:
    """Return mean or std: the first runs have them only beside their best weights, or in the cell's own file."""
    assert place.run is not None
    if what in data:
        return data[what]
    metadata = tensors_file.look(place.weights, place.weights.stat().st_size)[1]
    if what in metadata:
        return json.loads(metadata[what])
    return getattr(read_config(place.run / "best"), what) if (place.run / "best" / FILE).is_file() else None


def _attention(settings: dict[str, Any], place: Place) -> dict[str, Any] | str | None:
    """Return options of `cbam.attach`, "control", or None for a plain network."""
    if "seeds" not in settings:
        kind = settings["attention"]
        given = {name: settings.get(name) for name in _OPTIONS}
        return None if kind == "none" else {"attention": kind, "init": "paper", **_taken(kind, given)}
    named = {name.replace(":", "-"): name for name in _variants(settings)}
    cell = next(p.name for p in place.weights.absolute().parents if p.parent.name == "cells")
    variant = parse_variant(named[cell.rpartition("-seed")[0]])
    if variant.attention is None:
        return CONTROL if variant.name == CONTROL else None
    given = {"reduction_ratio": settings.get("reduction_ratio")}
    return {**_taken(variant.attention, given), **variant.attach_arguments(fine_tuning=False)}


def _variants(settings: dict[str, Any]) -> list[str]:
    said = settings["attention"]
    return [name.strip() for name in (said.split(",") if isinstance(said, str) else said)]


def _taken(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    options = attention_kind(kind).options
    return {name: value for name, value in given.items() if name in options and value is not None}


def _target_of_control(settings: dict[str, Any], run: Path) -> int:
    """Return the number of parameters of the network that a control was made to match."""
    cell = find_network(run, matched_by_control(_variants(settings)))
    assert cell is not None
    weights = cell.weights
    shapes, _ = tensors_file.look(weights, weights.stat().st_size)
    return sum(value.numel() for key, value in shapes.items() if not key.endswith(_NO_PARAMETERS))
