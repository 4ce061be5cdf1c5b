"""After the trainings: costs side by side, pictures, and how far a difference depends on the images."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.compare.measure import latency_rows
from cbam.data.detection import DetectionData, PreparedDetection
from cbam.detect.evaluation import DetectionScores, Evaluator, make_evaluator
from cbam.detect.saved import open_detector
from cbam.evaluate.cost import cost
from cbam.evaluate.detection import bootstrap_ap
from cbam.evaluate.detection.matching import Matches
from cbam.evaluate.latency import interleaved_latency
from cbam.explain.detection_pictures import detection_pictures, first_with_objects
from cbam.files import write_atomically

DETECTIONS = "detections.npz"
PICTURES = 6
_BATCH_SIZES = (1, 4)
_ROUNDS = 7
# What runs on whole maps; the rest runs on regions, whose number depends on the image.
_ON_MAPS = ("backbone", "rpn.head", "head")
_RESAMPLES = 1000


def measure_detectors(
    models: Mapping[str, nn.Module], input_size: tuple[int, int, int], *, timed: bool = True
) -> dict[str, Any]:
    """Count and time detectors; return the content of `costs.json` without the training speed.

    Args:
        models: By variant, all on the device on which to measure, in evaluation mode.
        input_size: (C, H, W), the size at which they are trained.
        timed: Whether to measure latency too.
    """
    latency = (
        interleaved_latency(models, input_size, batch_sizes=_BATCH_SIZES, rounds=_ROUNDS, channels_last=True)
        if timed
        else {}
    )
    found: dict[str, Any] = {}
    for variant, model in models.items():
        count = cost(model, input_size)
        parts = [row for row in count.modules if row.name in _ON_MAPS]
        found[variant] = {
            "parameters": count.parameters,
            **{
                name: sum(getattr(part, name) for part in parts)
                for name in ("macs", "flops", "bytes_moved", "bytes_saved")
            },
        }
        if timed:
            found[variant]["latency"] = latency_rows(latency[variant])
    return found


def store_detections(file: Path, scores: DetectionScores) -> None:
    """Write all detections of an evaluation, without masks: the images are resampled from them."""
    rows = scores.evaluator.results()
    arrays = {
        "images": np.array([row["image_id"] for row in rows], dtype=np.int64),
        "labels": np.array([row["category_id"] for row in rows], dtype=np.int64),
        "scores": np.array([row["score"] for row in rows], dtype=np.float32),
        "boxes": np.array([row["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4),
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically(file, content.getvalue())


def read_matches(file: Path, data: DetectionData, metric: str) -> Matches | None:
    """Return what stored detections were matched with; None where there are none."""
    if not file.exists():
        return None
    with np.load(file) as stored:
        images, labels, scores, boxes = (stored[name] for name in ("images", "labels", "scores", "boxes"))
    boxes = boxes.copy()
    boxes[:, 2:] += boxes[:, :2]  # COCO's form has width and height
    evaluator: Evaluator = make_evaluator(data, metric, masks=False)
    for image in evaluator.truth:
        chosen = images == image
        parts = {"boxes": boxes[chosen], "labels": labels[chosen], "scores": scores[chosen]}
        evaluator.update(image, {name: torch.from_numpy(part) for name, part in parts.items()})
    return evaluator.matches()


def image_intervals(
    folder: CompareFolder, cells: Sequence[Cell], data: DetectionData, metric: str, baseline: str
) -> dict[str, Any]:
    """Return each variant's difference to the baseline with its interval over the images, `images.json`'s content.

    Args:
        folder: The run's.
        cells: Those that are finished.
        data: The set.
        metric: By which detectors are judged.
        baseline: The variant that the others are compared with.
    """
    by_variant: dict[str, dict[int, Matches]] = {}
    for cell in cells:
        if (matches := read_matches(folder.cell(cell) / DETECTIONS, data, metric)) is not None:
            by_variant.setdefault(cell.variant, {})[cell.seed] = matches
    points: Any = {"coco": 101, "voc07": 11, "voc": "all"}[metric]
    found = {}
    for variant, ours in by_variant.items():
        seeds = sorted(set(ours) & set(by_variant.get(baseline, {})))
        if variant == baseline or not seeds:
            continue
        interval = bootstrap_ap(
            [ours[seed] for seed in seeds],
            [by_variant[baseline][seed] for seed in seeds],
            points=points,
            resamples=_RESAMPLES,
        )
        found[variant] = {
            "difference": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "seeds": seeds,
            "resamples": interval.resamples,
        }
    return found


def trained_detectors(
    folder: CompareFolder, variants: Sequence[str], device: torch.device
) -> dict[str, nn.Module]:
    """Return the trained detectors of seed 0 by variant, on the device and in evaluation mode."""
    found = {}
    for variant in variants:
        model, _ = open_detector(folder.cell(Cell(variant, 0)))
        found[variant] = model.to(device).to(memory_format=torch.channels_last)
    return found


@torch.no_grad()
def draw_detected(folder: CompareFolder, models: Mapping[str, nn.Module], data: DetectionData) -> None:
    """Draw what every detector finds on the same validation images into the run's folder."""
    chosen = first_with_objects(data.validation, PICTURES)
    prepared = PreparedDetection(data.validation, None)
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for variant, model in models.items():
        device = next(model.parameters()).device
        found[variant] = {index: model([prepared[0, index][0].to(device)])[0] for index in chosen}
    detection_pictures(found, data.validation, chosen, data.classes, folder.path / "pictures")


def pictures_drawn(folder: CompareFolder, variants: Sequence[str]) -> bool:
    """Whether the pictures of all variants are there."""
    try:
        manifest = json.loads((folder.path / "pictures" / "pictures.json").read_text(encoding="utf-8"))
        return all(set(variants) <= set(image["panels"]) for image in manifest["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
