"""The report of a comparison of detectors: the page of `cbam compare` with detections instead of Grad-CAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cbam.compare.detection.figures import precision_recall_figure
from cbam.compare.grid import Cell
from cbam.compare.reading import Run, read_object, read_run, telling_damage
from cbam.compare.report import write_page
from cbam.compare.statistics import Score, summarise
from cbam.compare.tables import costed
from cbam.page import embedded

_LARGEST_SIDE = 384  # names can be read on a screen with two pixels to a point
RECALLS = [step / 100 for step in range(101)]
AVERAGE_PRECISION = Score("val_map", "average precision", "per_class_ap")
_NOTES = {
    "coco": "Average precision of boxes as COCO defines it: the mean over IoU thresholds from 0.5 to 0.95.",
    "voc07": "Average precision as VOC 2007 defines it: at 11 recalls, IoU above 0.5.",
    "voc": "Average precision as VOC has defined it since 2010: below the whole curve, IoU above 0.5.",
}


def write_detection_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path; an unfinished run gets a page that says so.

    Args:
        run_dir: the folder that `cbam detect compare` wrote.

    Raises:
        CBAMError: the folder holds no run, or one of its files is broken; the message names the file.
    """
    with telling_damage(Path(run_dir)):
        return _write(read_run(Path(run_dir)))


def _write(run: Run) -> Path:
    summary = summarise(run.results, run.variants, AVERAGE_PRECISION, run.rows)
    images = read_object(run.folder / "images.json")
    shots = _shots(run)
    own: dict[str, Any] = {
        "costed": costed(run),
        "metric_note": _NOTES[run.data.get("metric", "coco")],
        "images": images,
        "resamples": max((one["resamples"] for one in images.values()), default=0),
        "shots": shots,
        "least_score": run.pictures.get("least_score"),
        "shown_variants": [name for name in run.variants if any(name in shot["panels"] for shot in shots)],
    }
    own["precision"] = precision_recall_figure(
        _curves(run), RECALLS, "precision-recall", "IoU 0.5, mean over the classes"
    )
    return write_page(run, summary, AVERAGE_PRECISION, "detection.html.j2", own)


def _curves(run: Run) -> dict[str, list[list[float]]]:
    """Return by variant for each seed the precision at `RECALLS`, the mean over the classes with objects."""
    found: dict[str, list[list[float]]] = {variant: [] for variant in run.variants}
    for result in run.results:
        cell = Cell(result["variant"], result["seed"]).name
        content = read_object(run.folder / "cells" / cell / "evaluation.json")
        if content.get("metric") == "coco":
            curve = content["boxes"]["curves"]["0.50"]["mean"]
        else:
            curve = _mean_curve([one for one in content.get("curves", []) if one])
        if curve:
            found[result["variant"]].append(curve)
    return found


def _mean_curve(classes: list[dict[str, list[float]]]) -> list[float]:
    """Return the mean over classes of the highest precision at each recall or above."""
    if not classes:
        return []
    rows = []
    for curve in classes:
        recall, precision = np.array(curve["recall"]), np.array(curve["precision"])
        best = np.maximum.accumulate(precision[::-1])[::-1] if len(precision) else precision
        at = np.searchsorted(recall, RECALLS, side="left")
        rows.append(np.append(best, 0.0)[np.minimum(at, len(best))])
    return np.mean(rows, axis=0).tolist()


def _shots(run: Run) -> list[dict[str, Any]]:
    """Return the drawn images with every picture as a data URI."""
    folder = run.folder / "pictures"
    return [
        {
            "index": image["index"],
            "panels": {
                name: {
                    "picture": embedded(folder / Path(panel["file"]).name, _LARGEST_SIDE),
                    "objects": panel["objects"],
                }
                for name, panel in image["panels"].items()
            },
        }
        for image in run.pictures.get("images", [])
    ]
