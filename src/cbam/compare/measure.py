"""After training: costs side by side, and the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from cbam.compare.config import CompareConfig
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell, build_cell
from cbam.data.image_data import ImageData
from cbam.evaluate.cost import cost
from cbam.evaluate.latency import Latency, interleaved_latency
from cbam.explain.pictures import gradcam_pictures
from cbam.models.cam_layer import cam_layer

BATCH_SIZES = (1, 32)


def trained_models(
    folder: CompareFolder,
    config: CompareConfig,
    data: ImageData,
    parameters: dict[str, int],
    device: torch.device,
) -> dict[str, nn.Module]:
    """Return the trained models of seed 0, by variant, on `device` and in evaluation mode; see `build_cell`."""
    models = {}
    for variant in config.variants:
        cell = Cell(variant, 0)
        model = build_cell(cell, config, data, parameters)
        model.load_state_dict(load_file(folder.cell(cell) / "model.safetensors"))
        models[variant] = model.to(device).to(memory_format=torch.channels_last).eval()
    return models


def known_costs(
    folder: CompareFolder, variants: Sequence[str], *, again: bool, quick: bool
) -> dict[str, Any]:
    """Return what `costs.json` holds, if that is all: every variant, and its latency unless the run is a quick one.

    Args:
        folder: The run's.
        variants: Of the run.
        again: The networks have changed since.
        quick: Without latency.
    """
    known = folder.read_json("costs.json") or {}
    whole = set(known) == set(variants) and (quick or all("latency" in cost for cost in known.values()))
    return known if whole and not again else {}


def measure_costs(
    models: dict[str, nn.Module], input_size: tuple[int, int, int], *, timed: bool = True
) -> dict[str, Any]:
    """Count and time every model; return the content of `costs.json` without the training speed.

    Args:
        models: By variant, all on the device on which to measure.
        input_size: (C, H, W).
        timed: Whether to measure latency too.
    """
    counted = {variant: cost(model, input_size) for variant, model in models.items()}
    names = ("parameters", "macs", "flops", "bytes_moved", "bytes_saved")
    counts = {variant: {name: getattr(count, name) for name in names} for variant, count in counted.items()}
    if not timed:
        return counts
    # Large networks on a CPU would take many minutes to time; five rounds still give a median and quartiles.
    one_round = sum(count.macs for count in counted.values()) * sum(BATCH_SIZES)
    rounds = max(5, min(15, round(2e12 / max(1, one_round))))
    found = interleaved_latency(
        models, input_size, batch_sizes=BATCH_SIZES, rounds=rounds, channels_last=True
    )
    return {variant: {**count, "latency": latency_rows(found[variant])} for variant, count in counts.items()}


def latency_rows(timed: Mapping[int, Latency]) -> dict[str, dict[str, float]]:
    """Return median and quartiles by batch size, as `costs.json` holds them."""
    return {
        str(batch): {name: getattr(time, name) for name in ("median_ms", "low_ms", "high_ms")}
        for batch, time in timed.items()
    }


def draw_pictures(folder: CompareFolder, models: dict[str, nn.Module], data: ImageData) -> None:
    """Draw Grad-CAM of the same validation images for every model into the run's folder."""
    layer = cam_layer(next(iter(models.values())), data.input_size)
    gradcam_pictures(models, layer, data.val, data.classes, folder.path / "pictures", seed=0)


def pictures_done(folder: CompareFolder, variants: tuple[str, ...]) -> bool:
    """Whether the pictures of all variants are there."""
    try:
        manifest = json.loads((folder.path / "pictures" / "pictures.json").read_text(encoding="utf-8"))
        noted = set(manifest.get("notes", ()))  # variants that could not be drawn
        return all(set(variants) <= noted | set(image["variants"]) for image in manifest["images"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
